"""Recipes of EAGLE-1 and EAGLE-3: how a head is made for a target, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from baselines.eagle.head import EagleHead, HeadShape, default_layers
from baselines.eagle.losses import StepSums, cross_entropy, feature_distance, lk, restrict
from baselines.eagle.ttt import Answers, Batch, Embed, Window, unroll
from baselines.vsd import PathLoss, StepRows
from viasd.models import PairError
from viasd.spec import spec


@dataclass(frozen=True)
class Source:
    """What training takes of a target: its embedding, head [V, width], the gain of its last norm, and its config.

    The gain [width] is what the norm makes of ones: families differ in what they store.
    """

    embed: Embed
    vocabulary: int  # ids with an embedding
    head: Tensor
    norm: Tensor
    config: Any
    layers: int

    @classmethod
    def of(cls, model: Any) -> Source:
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None:
            raise PairError("pair.models.target: its head has a bias or is missing; accepted: a head without one")
        if not hasattr(decoder, "norm"):
            raise PairError(
                "pair.models.target: no final norm found; accepted: models whose decoder has one, as Llama's"
            )
        embed, width = model.get_input_embeddings(), head.weight.shape[1]
        with torch.no_grad():
            norm = decoder.norm(torch.ones(1, width, dtype=head.weight.dtype, device=head.weight.device))[0]
        return cls(embed, embed.weight.shape[0], head.weight.detach(), norm, decoder.config, len(decoder.layers))

    def logits(self, states: Tensor) -> Tensor:
        """The target's logits [n, V] of states [n, width] behind its final norm."""
        return cap_logits(functional.linear(states.to(self.head.dtype), self.head).float(), self.config)

    def shape(self, version: Literal[1, 3], intermediate: int | None, **options: Any) -> HeadShape:
        """A head as wide as the target, with its attention."""
        config = self.config
        heads: int = config.num_attention_heads
        return HeadShape(
            version=version,
            width=config.hidden_size,
            target_width=config.hidden_size,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            intermediate=intermediate or config.intermediate_size,
            vocabulary=self.vocabulary,
            eps=config.rms_norm_eps,
            rope=dict(config.rope_parameters),
            max_positions=config.max_position_embeddings,
            **options,
        )


def cap_logits(logits: Tensor, config: Any) -> Tensor:
    """Logits as models with soft caps have them."""
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()


@runtime_checkable
class Recipe(Protocol):
    """What is asked of a drafter. `weights`: of the loss of each step; with paths (`baselines.vsd`) theirs is the last.

    `taps`: layers of the target whose streams are features.
    """

    @property
    def weights(self) -> list[float]: ...
    def taps(self, layers: int) -> tuple[int, ...]: ...
    def noise(self, length: int) -> float: ...
    def measure(self, drafter: Any, batch: Batch, source: Source) -> list[StepSums]: ...


@runtime_checkable
class HeadRecipe(Recipe, Protocol):
    """The same of a head, and how a fresh one is made. `draft_vocabulary`: how many ids it may draft; None: all."""

    @property
    def draft_vocabulary(self) -> int | None: ...
    def make(self, source: Source, draft_ids: Tensor) -> EagleHead: ...


@spec
class Eagle3Recipe:
    """EAGLE-3 (2503.01840): unrolled over `steps`.

    `steps`: the paper has 5, its code 7. The total is the sum of `decay`^k times the loss of step k (code: 0.8).
    `loss`: `cross_entropy`, the published one, or `lk` (2602.23881). `average`: over `judged` positions, those of
    answer tokens whose target argmax can be drafted (the default, ours: a batch weighs the same however it is filled
    up), or over `all` places of the batch as the published code has it. `feature_weight` (ours; EAGLE-3 has no such
    loss): of SmoothL1 between the normed output and the target's state, a dense signal where there are few steps.
    `intermediate`: width of the mlp; None: the target's. `draft_vocabulary`: published heads have 32000; None: all ids.
    `aux_layers`: whose inputs the head takes; None: 2, half and all but three, as published. `start`: `target` begins
    with the target's last norm and its head's rows of the draft ids (ours), `random` with none. `paths`: the loss of
    paths beside it (VSD-style, ours).
    """

    steps: Annotated[int, Field(ge=1, le=32)] = 7
    decay: Annotated[float, Field(gt=0)] = 0.8
    loss: Literal["cross_entropy", "lk"] = "cross_entropy"
    average: Literal["judged", "all"] = "judged"
    feature_weight: Annotated[float, Field(ge=0)] = 0.0
    intermediate: Annotated[int, Field(ge=1)] | None = None
    draft_vocabulary: Annotated[int, Field(ge=1)] | None = 32000
    norm_before_residual: bool = False
    aux_layers: tuple[int, int, int] | None = None
    start: Literal["target", "random"] = "target"
    paths: PathLoss | None = None

    @property
    def weights(self) -> list[float]:
        return weigh_steps([self.decay**step for step in range(self.steps)], self.paths)

    def taps(self, layers: int) -> tuple[int, ...]:
        return self.aux_layers or default_layers(layers)

    def make(self, source: Source, draft_ids: Tensor) -> EagleHead:
        """A fresh head, from torch's generator."""
        reduced = len(draft_ids) < source.vocabulary
        head = EagleHead(
            source.shape(
                3,
                self.intermediate,
                draft_vocabulary=len(draft_ids) if reduced else None,
                norm_before_residual=self.norm_before_residual,
                aux_layers=self.aux_layers,
            )
        )
        if reduced:
            head.name_ids(draft_ids)
        if self.start == "target" and head.lm_head is not None and head.norm is not None:
            with torch.no_grad():
                head.lm_head.weight.copy_(source.head[draft_ids])
                head.norm.weight.copy_(source.norm)
        return head

    def noise(self, length: int) -> float:
        return 0.0

    def measure(self, head: EagleHead, batch: Batch, source: Source) -> list[StepSums]:
        window, answers, ids = Window.of(batch, self.steps), Answers.of(batch), head.draft_ids()
        logits = source.logits(batch.states[answers.documents, answers.places])  # [n, V]
        wanted = logits.max(-1).indices
        columns = find_columns(wanted, ids, logits.shape[1])
        known = columns >= 0
        if self.loss == "lk":
            rows = logits.softmax(-1) if ids is None else logits.softmax(-1)[:, ids]
        else:
            rows = restrict(logits, ids)
        position = lk if self.loss == "lk" else cross_entropy
        sums, steps = [], []
        for step, outputs in enumerate(unroll(head, batch, source.embed, self.steps, window)):
            seen, index = answers.seen_from(step)
            found = window.find(outputs, answers.documents[seen], index)
            drafted = head.logits(found, source.head)
            agreed = drafted.detach().max(-1).indices == columns[seen]
            losses = position(drafted, rows[seen]) * known[seen]
            if self.feature_weight and head.norm is not None:
                features = batch.states[answers.documents[seen], answers.places[seen]]
                losses = losses + self.feature_weight * feature_distance(head.norm(found), features) * known[seen]
            every = torch.tensor(batch.ids.numel(), device=batch.ids.device)
            places = known[seen].sum() if self.average == "judged" else every
            sums.append(StepSums(losses.sum(), places, seen.sum(), agreed.sum()))
            if self.paths is not None:
                steps.append(StepRows(drafted.float().log_softmax(-1), seen.nonzero()[:, 0], columns[seen]))
        return sums + measure_paths(self.paths, steps, answers, wanted, batch)


@spec
class Eagle1Recipe:
    """EAGLE-1 and EAGLE-2 (2401.15077): one step, SmoothL1 of the feature plus `logit_weight` soft cross entropy.

    Features get uniform noise of +-`feature_noise` x 512 / length of the document, as the published code scales it (the
    paper names 0.1 alone). `fc_bias`: Vicuna's and Llama-2's heads have one, Llama-3's have none. `intermediate`:
    width of the mlp; None: the target's.
    """

    logit_weight: Annotated[float, Field(ge=0)] = 0.1
    feature_noise: Annotated[float, Field(ge=0)] = 0.1
    fc_bias: bool = False
    intermediate: Annotated[int, Field(ge=1)] | None = None

    @property
    def weights(self) -> list[float]:
        return [1.0]

    def taps(self, layers: int) -> tuple[int, ...]:
        return ()

    @property
    def draft_vocabulary(self) -> int | None:
        return None

    def make(self, source: Source, draft_ids: Tensor) -> EagleHead:
        """A fresh head, from torch's generator."""
        return EagleHead(source.shape(1, self.intermediate, fc_bias=self.fc_bias))

    def noise(self, length: int) -> float:
        return self.feature_noise * 512 / length

    def measure(self, head: EagleHead, batch: Batch, source: Source) -> list[StepSums]:
        window, answers = Window.of(batch, 1), Answers.of(batch)
        (outputs,) = unroll(head, batch, source.embed, 1, window)
        seen, index = answers.seen_from(0)
        documents, places = answers.documents[seen], answers.places[seen]
        features, found = batch.states[documents, places], window.find(outputs, documents, index)
        logits, drafted = source.logits(features), head.logits(found, source.head.to(found.dtype))
        losses = feature_distance(found, features) + self.logit_weight * cross_entropy(drafted, logits.softmax(-1))
        agreed = drafted.detach().max(-1).indices == logits.max(-1).indices
        return [StepSums(losses.sum(), seen.sum(), seen.sum(), agreed.sum())]


def weigh_steps(weights: list[float], paths: PathLoss | None) -> list[float]:
    """The weights of a plain loss beside that of paths, which is the last one."""
    return weights if paths is None else [*(paths.anchor * weight for weight in weights), 1.0]


def find_columns(wanted: Tensor, ids: Tensor | None, vocabulary: int) -> Tensor:
    """The column [n] of each wanted id among the ids that can be drafted, -1 where it is none of them."""
    if ids is None:
        return wanted
    columns = torch.full((vocabulary,), -1, device=ids.device)
    columns[ids] = torch.arange(len(ids), device=ids.device)
    return columns[wanted]


def measure_paths(
    paths: PathLoss | None, steps: list[StepRows], answers: Answers, wanted: Tensor, batch: Batch
) -> list[StepSums]:
    """The loss of paths, if there is one."""
    if paths is None:
        return []
    followed = batch.ids[answers.documents, answers.places + 1] == wanted
    return [paths.measure(steps, answers.documents, followed, batch.generator())]


def choose_ids(counts: Tensor, size: int | None) -> Tensor:
    """The `size` ids [n] counted most often, ascending; of equals the lower ones. `counts` [V]; None: all ids."""
    if size is None or size >= len(counts):
        return torch.arange(len(counts))
    return counts.sort(descending=True, stable=True).indices[:size].sort().values
