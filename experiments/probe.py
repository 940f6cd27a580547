"""The probe: `python -m experiments.probe [key=value ...]` says whether a pair suits speculative decoding and VIA-SD.

Costs of isolated steps, agreement of other models and slim views with the target, and the speeds that follow from them.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.entry import CONFIG_DIR, run_command


def run_probe(config: DictConfig) -> Path:
    """One probe, from configuration to its folder."""
    from experiments.launching.neighbors import edges
    from experiments.launching.place import alone_to_time
    from experiments.probing.figure import draw
    from experiments.probing.setup import build
    from experiments.probing.show import show
    from experiments.probing.work import measure, settle
    from experiments.store import create_folder, file_name, replace_json

    job = build(config)
    plan = settle(job)
    folder = job.settings.results / "probes" / f"{file_name(job.pair.name)}_{plan.probe_id}"
    create_folder(folder, job.settings.results)
    print(f"probe of pair {job.pair.name}: {plan.headline}", flush=True)
    with alone_to_time(job.engine.device, job.pair, f"probe of pair {job.pair.name}"), edges() as seen:
        content = measure(job, plan)
    content["notices"] = [*content["notices"], *seen.told("this probe was")]
    replace_json(folder / "probe.json", content)
    draw(content, folder / "probe.png")
    print(f"\n{show(content)}")
    print(f"numbers: {folder / 'probe.json'}\nfigure: {folder / 'probe.png'}")
    return folder


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="probe")
def _main(config: DictConfig) -> str:
    return run_probe(config).name


def main() -> None:
    """Entry point."""
    run_command(_main, interrupted="interrupted; a probe stores nothing before it is done")


if __name__ == "__main__":
    main()
