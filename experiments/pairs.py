"""Pairs that are made here and not in the repository: where they are, and how to make what is missing."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from experiments.entry import results_folder
from experiments.errors import NotTrained
from viasd.models import Pair, PairError
from viasd.spec import spec
from viasd.widening import Scale


def pair_folder(scale: str, folder: str | None = None) -> Path:
    """Where the reference pair of a scale is: below `folder`, else below pairs/ of the results folder."""
    return (Path(folder).expanduser() if folder else results_folder(None) / "pairs") / f"reference_{scale}"


@spec
class WidePair(Pair):
    """The reference pair with as many parameters as `scale` says, as scripts/widen_pair.py writes it.

    Models that are not named are those of its folder, as are masks where none is named.
    """

    scale: Scale = "1b"
    folder: str | None = None  # null: pairs/ of the results folder
    models: dict[str, str] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        home = pair_folder(self.scale, self.folder)
        models = {role: str(home / role) for role in ("target", "draft")}
        object.__setattr__(self, "models", {**models, **self.models})
        if not self.masks:
            object.__setattr__(self, "masks", [str(path) for path in sorted((home / "masks").glob("*.json"))])

    def path(self, role: str, weights: bool = True) -> Path:
        """Folder of a role's model. Raises PairError, which names the command that makes the pair, where none is."""
        home = pair_folder(self.scale, self.folder)
        if self.models.get(role) == str(home / role) and not (home / role / "config.json").is_file():
            raise PairError(
                f"pair.scale={self.scale}: no {role} model in {home}; to make the pair: "
                f"python scripts/widen_pair.py --scale {self.scale} --out {home}"
            )
        return Pair.path(self, role, weights)  # slots make the class anew, and super() would look for the first one


@spec
class TrainedPair(Pair):
    """A pair with all drafters that scripts/train_vsd.py has trained for it, by the names of their folders.

    Heads of the target are `heads`, draft models further roles of `models`.
    """

    trained: str | None = None  # null: training/vsd of the results folder

    def __post_init__(self) -> None:
        home = Path(self.trained).expanduser() if self.trained else results_folder(None) / "training" / "vsd"
        folders = [path.parent for path in sorted(home.glob("*/ablation.json"))]
        if not folders:
            raise NotTrained(
                f"trained={home}: nothing was trained there; accepted: what python scripts/train_vsd.py wrote"
            )
        models = {path.name: str(path) for path in folders if (path / "tokenizer_config.json").is_file()}
        heads = {path.name: str(path) for path in folders if path.name not in models}
        object.__setattr__(self, "models", {**self.models, **models})
        object.__setattr__(self, "heads", {**self.heads, **heads})
