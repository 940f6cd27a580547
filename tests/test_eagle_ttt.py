"""The unrolled head computes what decoding computes: each step, each index, to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from baselines.eagle.head import EagleHead, HeadShape
from baselines.eagle.losses import cross_entropy, lk, restrict
from baselines.eagle.rotary import rotary
from baselines.eagle.ttt import Answers, Batch, Embed, Window, unroll

WIDTH, VOCABULARY, STEPS = 16, 40, 4
SHAPE = HeadShape(
    version=3,
    width=WIDTH,
    target_width=WIDTH,
    heads=4,
    kv_heads=2,
    head_dim=6,
    intermediate=24,
    vocabulary=VOCABULARY,
    draft_vocabulary=20,
    max_positions=64,
)
SHAPES = {
    "eagle-3": SHAPE,
    "eagle-1": replace(SHAPE, version=1, draft_vocabulary=None, fc_bias=True),
    "two layers": replace(SHAPE, layers=2),
    "normed": replace(SHAPE, feed_normed=True, norm_before_residual=True, fc_norm=True, query_key_norm=True),
    "own embedding": replace(SHAPE, own_embedding=True),
    "scaled": replace(SHAPE, rope={"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}),
}


def random_head(shape: HeadShape) -> EagleHead:
    torch.manual_seed(3)
    head = EagleHead(shape).double()
    with torch.no_grad():
        for weight in head.parameters():  # sharp attention, and norms that are not all ones
            weight.copy_(torch.randn(weight.shape, dtype=weight.dtype) * (0.4 if weight.ndim > 1 else 1.0))
    return head


def random_batch(shape: HeadShape, features: int, stops: tuple[int, ...] = (11, 7, 14), first: int = 5) -> Batch:
    torch.manual_seed(4)
    rows, width = len(stops), max(stops)
    return Batch(
        ids=torch.randint(shape.vocabulary, (rows, width)),
        features=torch.randn(rows, width, features, dtype=torch.float64),
        states=torch.randn(rows, width, shape.target_width, dtype=torch.float64),
        firsts=torch.tensor([first] * rows),
        stops=torch.tensor(stops),
    )


def embedding(table: Tensor) -> Embed:
    return lambda ids: table[ids]


class DecodeCache:
    """Attention of decoding, one token at a time, with keys and values of all tokens before it."""

    def __init__(self, shape: HeadShape) -> None:
        self.place, self.table = 0, rotary(shape, torch.device("cpu"), torch.float64)
        self.kept: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def turn(self, states: Tensor) -> Tensor:
        cos, signed = (part[self.place, 0] for part in self.table)
        half = states.shape[-1] // 2
        swapped = torch.cat((states[..., half:], states[..., :half]), dim=-1)
        return states * cos + swapped * signed

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        own = self.kept.setdefault(layer, [])
        own.append((self.turn(keys[0]), values[0]))
        found = []
        for head, query in enumerate(self.turn(queries[0])):
            group = head // (queries.shape[1] // keys.shape[1])
            scores = torch.stack([query @ key[group] for key, _ in own]) / query.shape[0] ** 0.5
            found.append(sum(share * value[group] for share, (_, value) in zip(scores.softmax(0), own, strict=True)))
        return torch.cat(found)[None]  # type: ignore[arg-type]


def decode(head: EagleHead, ids: Tensor, features: Tensor, table: Tensor, start: int) -> list[Tensor]:
    """Outputs of all steps at index `start`: true pairs up to it, then what the head gave before."""
    mix, outputs = DecodeCache(head.shape), []
    for place in range(start + 1):
        mix.place = place
        states = head.enter(features[place : place + 1])
        output = head.step(table[ids[place + 1]][None], states, mix)
    outputs.append(output)
    for step in range(1, STEPS):
        if start + 1 + step >= len(ids):
            break
        mix.place = start + step
        outputs.append(head.step(table[ids[start + 1 + step]][None], head.feed_back(outputs[-1]), mix))
    return outputs


@pytest.mark.parametrize("name", SHAPES)
def test_each_step_is_what_decoding_does(name: str) -> None:
    shape = SHAPES[name]
    head, batch = random_head(shape), random_batch(shape, WIDTH if shape.version == 1 else 3 * WIDTH)
    table = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64)
    window = Window.of(batch, STEPS)
    with torch.no_grad():
        outputs = unroll(head, batch, embedding(table), STEPS, window)
        own = table if head.embed_tokens is None else head.embed_tokens.weight
        compared = 0
        for row, stop in enumerate(batch.stops.tolist()):
            for column, start in enumerate(window.index[row].tolist()):
                if start > stop - 2:
                    continue
                told = decode(head, batch.ids[row, :stop], batch.features[row, :stop], own, start)
                for step, wanted in enumerate(told):
                    torch.testing.assert_close(outputs[step][row, column], wanted[0], atol=1e-10, rtol=1e-10)
                    compared += 1
    assert compared > 60


def test_nothing_behind_a_document_counts() -> None:
    head, batch = random_head(SHAPE), random_batch(SHAPE, 3 * WIDTH)
    table = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64)
    window, answers = Window.of(batch, STEPS), Answers.of(batch)
    filler = torch.arange(batch.ids.shape[1]) >= batch.stops[:, None]
    other = replace(
        batch, ids=batch.ids.masked_fill(filler, 7), features=batch.features.masked_fill(filler[..., None], 9)
    )
    for step, pair in enumerate(
        zip(*(unroll(head, one, embedding(table), STEPS, window) for one in (batch, other)), strict=True)
    ):
        seen, index = answers.seen_from(step)
        first, second = (window.find(outputs, answers.documents[seen], index) for outputs in pair)
        assert torch.equal(first, second)


def test_every_answer_token_is_judged_from_where_it_is_drafted() -> None:
    """Answer token at place p, of step k, from index p - 2 - k; a row of the target behind token p - 1 decides it."""
    batch = random_batch(SHAPE, 3 * WIDTH, stops=(9, 6), first=3)
    answers, window = Answers.of(batch), Window.of(batch, STEPS)
    tokens = list(zip(answers.documents.tolist(), (answers.places + 1).tolist(), strict=True))
    assert tokens == [(0, place) for place in range(3, 9)] + [(1, place) for place in range(3, 6)]
    for step in range(STEPS):
        seen, index = answers.seen_from(step)
        wanted = [(row, place - 2 - step) for row, place in tokens if place - 2 - step >= 0]
        assert list(zip(answers.documents[seen].tolist(), index.tolist(), strict=True)) == wanted
        for row, place in wanted:
            assert place in window.index[row]


def test_restricted_cross_entropy_is_the_plain_formula() -> None:
    torch.manual_seed(0)
    wide, drafted = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    ids = torch.tensor([1, 4, 5, 11])
    full = wide.softmax(-1)[:, ids]
    rows = full / full.sum(-1, keepdim=True)
    assert torch.allclose(restrict(wide, ids).double(), rows, atol=1e-6)
    wanted = functional.cross_entropy(drafted, rows, reduction="none")
    assert torch.allclose(cross_entropy(drafted, rows).double(), wanted, atol=1e-6)


def test_lk_is_minus_log_of_the_chance_to_be_kept() -> None:
    rows = torch.tensor([[0.5, 0.2], [0.0, 0.0]])  # the rest of the target's mass cannot be drafted
    drafted = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    found = lk(drafted, rows)
    assert found[0].item() == pytest.approx(-torch.tensor(0.45).log().item(), abs=1e-6)
    assert found[1].isfinite()
