"""What a published table or figure needs and shows: the classes that the yamls of conf/table name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from viasd.spec import spec

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]
Effect = Literal["none", "ratio", "difference"]


@spec
class PaperRow:
    """Rows of a paper's table: its name of the method and, where that is not enough, of the setting."""

    method: Text
    setting: str | None = None


@spec
class Column:
    """A metric of ours and what the paper has in its place.

    `effect`: against the row's base, as a ratio or a difference. `paper`: its metric; `paper_effect` says whether
    its effect is computed from its own baseline's value (`computed`), printed as it is (`printed`) or as percent above
    the baseline (`percent`). `digits`: decimals; None: those of the metric.
    """

    metric: Text
    effect: Effect = "none"
    title: str | None = None
    paper: str | None = None
    paper_effect: Literal["computed", "printed", "percent"] = "computed"
    digits: Annotated[int, Field(ge=0, le=6)] | None = None


@spec
class Row:
    """A line: the mean over some arms (none: the arm that has the row's key as its name), and the paper's rows.

    `base`: the key of the row that its effects are against (None: the table's baseline), its own for a base.
    """

    label: Text
    arms: list[str] = Field(default_factory=list)
    paper: PaperRow | None = None
    base: str | None = None


@spec
class Size:
    """Examples of each task, timed and judged (conf/sized.yaml)."""

    limit: Annotated[int, Field(ge=1)]
    quality_limit: Annotated[int, Field(ge=1)]


@spec
class Published:
    """What tables and figures share.

    `paper`: where the original stands. `experiment`: the yaml of conf/experiment whose runs it shows, on `tasks` unless
    others are asked for. `needs`: what has to be run before the experiment can. `sizes`: examples by name of a size
    that are not the experiment's. `cite`: keys of CITATIONS.bib.
    """

    name: Name
    title: Text
    paper: Text
    experiment: Text
    tasks: Annotated[list[str], Field(min_length=1)]
    notes: list[str] = Field(default_factory=list)
    cite: Annotated[list[str], Field(min_length=1)]
    needs: str | None = None
    sizes: dict[str, Size] = Field(default_factory=dict)


@spec
class Table(Published):
    """A table of ours with the paper's values beside it.

    `values`: files of experiments/paper/values, one after the other; `temperature`: which of their values, beside those
    that state none (None: all).
    `baseline`: the key of the row that effects are against, where a row names no other. `not_comparable`: why no
    agreement is told.
    """

    values: list[Name] = Field(default_factory=list)
    temperature: str | None = None
    baseline: Text
    columns: Annotated[dict[str, Column], Field(min_length=1)]
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    controls: dict[str, Row] = Field(default_factory=dict)
    not_comparable: str | None = None

    @property
    def lines(self) -> dict[str, Row]:
        """All rows, the controls last."""
        return {**self.rows, **self.controls}

    def base_of(self, key: str) -> str:
        """The key of the row that a row's effects are against."""
        return self.lines[key].base or self.baseline


@spec
class Searched:
    """The arms of one skip ratio.

    `arm` runs the searched mask, `base` the same method with a mask that no search found, `control` the searched mask's
    slim verifier without a gate.
    """

    arm: Name
    base: Name
    control: Text


@spec
class SearchCost(Published):
    """What searching a mask costs, once, and after how many tokens that has paid, from the arms of one experiment.

    `arms`: by skip ratio; `baseline`: the arm that the whole method has to beat.
    """

    values: list[Name]
    baseline: Text
    arms: Annotated[dict[float, Searched], Field(min_length=1)]


@spec
class Drawing(Published):
    """A figure: `draw`, a function of experiments.figures by its dotted name, gets the runs and the `options`."""

    draw: Annotated[str, Field(pattern=r"^experiments\.figures\.\w+\.\w+$")]
    options: dict[str, Any] = Field(default_factory=dict)
