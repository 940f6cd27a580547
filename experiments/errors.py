"""Turn whatever goes wrong into one line that names the key, the value and what is accepted."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from viasd.models import PairError

CONF = Path(__file__).resolve().parent.parent / "conf"
NULL_GROUP = "Config group override must be"  # Hydra's words for task=null
CONFIG_DIRS = "VIASD_CONFIG_DIRS"  # for the jobs of a sweep, whose processes have another command line
EXTRAS = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit", "ray": "ray"}  # of launchers
USER_MISTAKE, FAILED, INTERRUPTED = 2, 1, 130
_TOLD: list[BaseException] = []


class UserError(ValueError):
    """A mistake of the person who typed the command; the message is the one line they see."""


class NotTrained(UserError):
    """A job that needs weights which nobody has trained yet; the message names what trains them."""


class RunFailed(RuntimeError):
    """A run that ended with more errors than allowed; its rows are stored."""


def config_folders() -> list[Path]:
    """Where yamls are looked for: conf/, and the folder that --config-dir adds on the command line."""
    typed = [part for argument in sys.argv[1:] for part in argument.split("=", 1)]
    own = [after for flag, after in pairwise(typed) if flag in ("--config-dir", "-cd")]
    own = own or [folder for folder in os.environ.get(CONFIG_DIRS, "").split(os.pathsep) if folder]
    return [CONF, *(Path(folder).absolute() for folder in own)]


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'? accepted: a, b` for a name that is not known."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint}; accepted: {', '.join(names) or 'none'}"


def exit_code(error: BaseException) -> int:
    """2 for users' mistakes, 130 for Ctrl-C, else 1."""
    if _interrupted(error):
        return INTERRUPTED
    mistakes = (UserError, PairError, ValidationError, HydraException, OmegaConfBaseException)
    mistaken = any(isinstance(link, mistakes) or NULL_GROUP in str(link) for link in _chain(error))
    return USER_MISTAKE if mistaken else FAILED


def one_line(error: BaseException) -> str:
    """What to tell the person, without a line break."""
    if _interrupted(error):
        return "interrupted; what was measured is stored, the same command goes on from there"
    links = list(_chain(error))
    for link in links:
        if isinstance(link, UserError | PairError | RunFailed):
            return _flat(str(link))
    keys = [match[1] for link in links for match in [re.search(r"full_key: (\S+)", str(link))] if match]
    key = max(keys, key=len, default="")  # Hydra names the key at the end of its text, the innermost is the longest
    for link in links:
        if isinstance(link, ValidationError):
            return _validation(link, key)
        if isinstance(link, MissingConfigException):
            return _missing(link)
    text = _flat(str(links[0])) or type(error).__name__
    if NULL_GROUP in text:
        return "a group such as task cannot be null; accepted: a name, as in task=reasoning (track=none logs nothing)"
    not_in_struct = re.search(r"Could not override '([^']+)'", text)
    if not_in_struct:
        return f"{not_in_struct[1]}: no such key in the configuration; the same command with --cfg job shows all"
    return text if exit_code(error) == USER_MISTAKE else f"{type(links[-1]).__name__}: {_flat(str(links[-1]))}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error of this kind is behind another one, also where pydantic wrapped it."""
    wrapped = [
        one.get("ctx", {}).get("error")
        for link in _chain(error)
        if isinstance(link, ValidationError)
        for one in link.errors(include_url=False)
    ]
    return any(isinstance(one, kind) for one in [*_chain(error), *wrapped])


def tell(error: BaseException, line: str) -> None:
    """Print the one line, unless this error was told before: a job of a sweep tells of itself, and is raised later."""
    if not any(link in _TOLD for link in _chain(error)):
        print(f"error: {line}", file=sys.stderr)
    _TOLD.append(error)


def _interrupted(error: BaseException) -> bool:
    """Ctrl-C, also where a library caught it while importing and raised an error of its own."""
    return any(isinstance(link, KeyboardInterrupt) for link in _chain(error))


def _validation(error: ValidationError, key: str) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join([*([key] if key else []), *(str(part) for part in first["loc"] if _is_key(part))])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "unexpected_keyword_argument":
        return f"{where}: no such field in {error.title}"
    if first["type"] == "value_error" and not first["loc"]:
        return _flat(f"{where}: {message}" if where else message)
    return _flat(f"{where}={first.get('input')!r}: {message}")


def _is_key(part: object) -> bool:
    """Not the name of a member of a union, which pydantic puts among the keys."""
    return isinstance(part, int) or (str(part).isidentifier() and part not in ("int", "str", "float", "bool", "none"))


def _missing(error: MissingConfigException) -> str:
    text = str(error)
    wanted = re.search(r"Could not find '([^']+)'", text) or re.search(
        r"(?:Cannot find primary config|Could not load) '([^']+)'", text
    )
    if wanted is None:
        return _flat(text)
    group, _, name = wanted[1].rpartition("/")
    if group == "hydra/launcher" and name in EXTRAS:
        return f"hydra/launcher: the plugin {name} is not installed; to install it: pip install -e '.[{EXTRAS[name]}]'"
    advice = near(name, (path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml")))
    if group == "method":
        advice += " (controls such as slim_only are arms: arms=[vanilla,sd,method,slim_only])"
    return f"{group}={name}: not found{advice}"


def _flat(text: str) -> str:
    return " ".join(text.split())
