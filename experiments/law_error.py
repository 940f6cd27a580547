"""Law errors on fixed prefixes: `python -m experiments.law_error [key=value ...]` compares row rules in closed form.

It separates what a rule does to the law of a token from what that does along a text, which task scores measure.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.entry import CONFIG_DIR, run_command


def run_law_error(config: DictConfig) -> Path:
    """One comparison, from configuration to its folder."""
    from experiments.launching.locks import presence
    from experiments.laws.setup import build
    from experiments.laws.show import markdown, show, write_csv
    from experiments.laws.work import measure, settle
    from experiments.store import create_folder, file_name, replace_json

    job = build(config)
    plan = settle(job)
    results = job.settings.results
    folder = results / "law_errors" / f"{file_name(job.pair.name)}_{plan.law_id}"
    create_folder(folder, results)
    print(f"law errors of pair {job.pair.name}: {plan.headline}", flush=True)
    with presence():
        content = measure(job, plan)
    replace_json(folder / "law_error.json", content)
    write_csv(folder / "law_error.csv", content)
    (folder / "law_error.md").write_text(markdown(content), encoding="utf-8")
    print(f"\n{show(content)}")
    print("\n".join(f"{what}: {folder / f'law_error.{kind}'}" for what, kind in (("numbers", "csv"), ("table", "md"))))
    return folder


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="law_error")
def _main(config: DictConfig) -> str:
    return run_law_error(config).name


def main() -> None:
    """Entry point."""
    run_command(_main, interrupted="interrupted; rows that were stored are not computed again")


if __name__ == "__main__":
    main()
