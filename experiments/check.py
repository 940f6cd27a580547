"""The check: `python -m experiments.check pair=NAME [key=value ...]` says whether a pair fits here and fits together.

Of models on a hub it fetches configuration and tokenizer, never weights; without a network it goes by the pair's yaml.
Exit code 2 where a run would fail.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.entry import CONFIG_DIR, run_command


def run_check(config: DictConfig) -> str:
    """One check: the table, printed. Raises UserError where one of its answers is no."""
    from pydantic import TypeAdapter

    from experiments.checking.facts import look_at
    from experiments.checking.show import show
    from experiments.checking.verdicts import CheckSettings, judge, planned_dtype
    from experiments.config import EngineSpec, make
    from experiments.errors import UserError
    from viasd.models import Pair

    scalars = {name: config[name] for name in CheckSettings.__dataclass_fields__}
    settings = TypeAdapter(CheckSettings).validate_python(scalars, strict=False)
    pair, engine = make(config["pair"], "pair"), make(config["engine"], "engine")
    for name, made, kind in (("pair", pair, Pair), ("engine", engine, EngineSpec)):
        if not isinstance(made, kind):
            raise UserError(f"{name}._target_={OmegaConf.select(config, name)['_target_']}: not a {kind.__name__}")
    if "target" not in pair.models:
        raise UserError(f"pair.models={sorted(pair.models)}: accepted: a target, and what drafts for it")
    facts = [look_at(pair, role) for role in pair.models]
    verdicts = judge(pair, engine, settings, facts)
    text = show(pair, facts, verdicts, planned_dtype(engine, settings))
    print(text)
    if failed := [one.question for one in verdicts if one.answer == "no"]:
        raise UserError(f"pair {pair.name}: {', '.join(failed)}: no (the table says why)")
    return text


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="check")
def _main(config: DictConfig) -> str:
    return run_check(config)


def main() -> None:
    """Entry point."""
    run_command(_main, interrupted="interrupted; a check stores nothing")


if __name__ == "__main__":
    main()
