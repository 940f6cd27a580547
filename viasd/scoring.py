"""What a slim view is worth: its rows on texts that the target wrote, as a run would see them, and measures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from viasd import geometry
from viasd.engine import Engine
from viasd.kv_cache import SlotCache
from viasd.models import Kept
from viasd.sampling import widen
from viasd.spec import spec

CacheMode = Literal["shared", "separate"]


@dataclass(frozen=True)
class Text:
    """A prompt of `first` tokens and what the target wrote behind it: `ids` [n].

    `rows` [n - first, V]: the target's logits, row i those of output token i. `keys`, `values`: what the target's
    attention holds of ids[:-1], [1, heads, n - 1, head_dim] by layer.
    """

    ids: Tensor
    first: int
    rows: Tensor
    keys: dict[int, Tensor]
    values: dict[int, Tensor]

    @property
    def length(self) -> int:
        return self.ids.shape[0] - self.first


@torch.inference_mode()
def read_text(engine: Engine, prompt: Sequence[int], output: Sequence[int]) -> Text:
    """Let the target read what it wrote. Raises ValueError for an empty prompt or output."""
    if not prompt or not output:
        raise ValueError(f"a text of {len(prompt)} + {len(output)} tokens; accepted: a prompt and an output")
    ids = torch.tensor([*prompt, *output], device=engine.device)
    stop = len(ids) - 1
    target = engine.readers().get("target")
    rows = target.feed(ids, stop, last=len(output))
    keys, values = (
        {layer: states[:, :, :stop].clone() for layer, states in store.items()}
        for store in (target.cache.keys, target.cache.values)
    )
    return Text(ids, len(prompt), rows.to(engine.dtype), keys, values)  # no logit has more than the model's precision


@torch.inference_mode()
def slim_rows(engine: Engine, kept: Kept, text: Text, cache: CacheMode = "shared", window: int = 16) -> Tensor:
    """Logits [n - first, V] of a slim view at the positions of the output, float32 or wider.

    `shared`: the output is cut into windows, the first of which begins at the prompt's last token. Inside one the view
    reads its own keys and values, before it the target's, as in a round in which the target had read all that lies
    before the window. `separate`: the view reads its own throughout; `window` does not matter.
    """
    view = engine.view(kept)
    if cache == "separate":
        output = view(input_ids=text.ids[None, :-1], use_cache=False, logits_to_keep=text.length)
        return widen(output.logits[0], engine.vocabulary)
    start, stop = text.first - 1, len(text.ids) - 1
    output = view(
        input_ids=text.ids[None, start:stop],
        position_ids=torch.arange(start, stop, device=engine.device)[None],
        attention_mask=engine.masks(view).windowed(start, stop, window),
        past_key_values=_WindowCache(text, last_start(start, stop, window)),
        use_cache=True,
        logits_to_keep=text.length,
    )
    return widen(output.logits[0], engine.vocabulary)


def last_start(start: int, stop: int, window: int) -> int:
    """Where the last window of positions start..stop-1 begins: what lies behind is seen by nobody as the target's."""
    return start + (stop - start - 1) // window * window


class _WindowCache(SlotCache):
    """A layer sees the target's first `seen` keys and values, then those of the forward itself. Nothing is stored."""

    def __init__(self, text: Text, seen: int) -> None:
        super().__init__(len(text.ids))
        self._text, self._seen = text, seen
        self.at(text.first - 1, len(text.ids) - 1)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple:
        keys, values = self._text.keys[layer_idx], self._text.values[layer_idx]
        return (
            torch.cat([keys[:, :, : self._seen], key_states], dim=2),
            torch.cat([values[:, :, : self._seen], value_states], dim=2),
        )


# --- measures -----------------------------------------------------------------------------------------------------


@spec
class Scoring:
    """How masks are scored: the run's cache mode, the shared mode's window in tokens, alpha and beta of Eq. 11."""

    cache: CacheMode = "shared"
    window: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.0
    beta: Annotated[float, Field(gt=0)] = 1.0


Replayed = Callable[[Sequence[Tensor]], Mapping[str, float]]
"""More measures, from the slim rows [n, V] of every text; for what needs a decode loop or calibrated costs."""


def measure(
    engine: Engine,
    texts: Sequence[Text],
    kept: Kept,
    scoring: Scoring,
    more: Replayed | None = None,
) -> dict[str, float]:
    """Measures of a slim view on the target's outputs, means per token.

    `cost` is R(target||slim), the slim view in the drafter's place (Eq. 12 over the number of tokens); `kl` is
    D_KL(target||slim), `tv` the total variation, `agreement` the share of equal first choices.
    """
    sums = dict.fromkeys(("cost", "agreement", "kl", "tv"), 0.0)
    collected = []
    for text in texts:
        target = text.rows
        slim = slim_rows(engine, kept, text, scoring.cache, scoring.window)
        sums["cost"] += geometry.block_cost(target, slim, scoring.alpha, scoring.beta)
        sums["agreement"] += float((target.argmax(-1) == slim.argmax(-1)).sum())
        sums["kl"] += float(geometry.kl_divergence(target, slim).sum())
        sums["tv"] += float(geometry.total_variation(target, slim).sum())
        if more is not None:
            collected.append(slim)
    tokens = sum(text.length for text in texts)
    means = {name: value / tokens for name, value in sums.items()}
    return means if more is None else {**means, **more(collected)}
