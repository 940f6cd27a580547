"""One prompt: `python -m experiments.ask "..." [key=value ...]` prints the answer, each token colored by its source.

The prompt is the first argument, or comes from standard input with `-`. Control characters of the answer are stripped.
"""

from __future__ import annotations

import os
import re
import sys

import hydra
from omegaconf import DictConfig

from experiments.entry import CONFIG_DIR, run_command
from experiments.errors import UserError

OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_][\w./@-]*=\S*")  # of Hydra; a text with spaces is a prompt
PROMPTS: list[str] = []  # the prompt of this process, which Hydra must not see


def take_prompt(arguments: list[str]) -> str | None:
    """Remove the prompt from the arguments of the command; None where only flags of Hydra are asked for.

    Raises UserError where there is none.
    """
    usage = 'accepted: python -m experiments.ask "PROMPT" [key=value ...], or - to read the prompt from standard input'
    if not arguments:
        raise UserError(f"no prompt; {usage}")
    first = arguments[0]
    if first.startswith("--"):
        return None
    if OVERRIDE.fullmatch(first):
        raise UserError(f"{first}: the prompt comes first; {usage}")
    del arguments[0]
    return sys.stdin.read().removesuffix("\n") if first == "-" else first


def in_colors() -> bool:
    """Whether standard output is a terminal that may be colored (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="ask")
def _main(config: DictConfig) -> None:
    from experiments.asking.show import show
    from experiments.asking.work import ask
    from experiments.launching.locks import presence

    with presence():
        print(show(ask(config, PROMPTS[-1]), in_colors()))


def main() -> None:
    """Entry point."""
    PROMPTS.clear()

    def job() -> None:
        arguments = sys.argv[1:]
        prompt = take_prompt(arguments)
        PROMPTS.append(prompt or "")
        sys.argv[1:] = arguments
        _main()

    run_command(job, interrupted="interrupted; a question stores nothing")


if __name__ == "__main__":
    main()
