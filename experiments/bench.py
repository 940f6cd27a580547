"""The bench: `python -m experiments.bench [key=value ...]` says what this harness costs beside the library's decoding.

Loops, time outside of forwards, single steps, memory and start-up, in one table. It is written to bench/DEVICE/ of the
results as JSON and Markdown, named by pair and dtype; a later bench of the same pair and dtype there replaces it.
"""

from __future__ import annotations

import re
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.entry import CONFIG_DIR, run_command

PASSED_ON = r"[+~]*(pair|engine)\b"  # what is said of pair and engine, which the timed starts are told, too


def run_bench(config: DictConfig) -> Path:
    """One bench, from configuration to its folder."""
    from experiments.benching.setup import build, settle
    from experiments.benching.show import markdown, show
    from experiments.benching.work import differences, measure
    from experiments.errors import RunFailed
    from experiments.launching.neighbors import edges
    from experiments.launching.place import alone_to_time
    from experiments.store import create_folder, file_name, replace_json

    job = build(config)
    plan = settle(job)
    results = job.settings.results
    folder = results / "bench" / file_name(plan.identity["device"])
    create_folder(folder, results)
    print(f"bench of pair {job.run.pair.name}: {plan.headline}", flush=True)
    pair, typed = job.run.pair, [one for one in HydraConfig.get().overrides.task if re.match(PASSED_ON, one)]
    with alone_to_time(job.run.engine.device, pair, f"bench of pair {pair.name}"), edges() as seen:
        content = measure(plan, typed)
    content["notices"] = [*content["notices"], *seen.told("this bench was")]
    path = folder / f"{file_name(content['pair'])}_{plan.identity['dtype']}.json"
    replace_json(path, content)
    path.with_suffix(".md").write_text(markdown(content), encoding="utf-8")
    print(f"{show(content)}\nnumbers: {path}\ntable: {path.with_suffix('.md')}")
    if told := differences(content["exact"]):
        raise RunFailed("; ".join(told))
    return folder


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="bench")
def _main(config: DictConfig) -> str:
    return run_bench(config).name


def main() -> None:
    """Entry point."""
    run_command(_main, interrupted="interrupted; a bench stores nothing before it is done")


if __name__ == "__main__":
    main()
