"""What a head computes, against the published formulas written out, on weights that were loaded from files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baselines.eagle.checkpoints import load_head
from baselines.eagle.fields import TargetSizes
from baselines.eagle.head import EagleHead, HeadShape
from baselines.eagle.rotary import rotary
from baselines.eagle.writing import write_safeailab, write_speculators

LENGTH, WIDTH, HEADS, KEYS, DIM = 7, 16, 4, 2, 8
FIRST = HeadShape(
    version=1,
    width=WIDTH,
    target_width=WIDTH,
    heads=HEADS,
    kv_heads=KEYS,
    head_dim=DIM,
    intermediate=24,
    vocabulary=40,
    max_positions=32,
    fc_bias=True,
)
THIRD = replace(FIRST, version=3, fc_bias=False, draft_vocabulary=12)


def save_and_load(shape: HeadShape, folder: Path) -> tuple[EagleHead, dict[str, Tensor]]:
    """A head with random weights, written and read back in float64, and its entries by name."""
    torch.manual_seed(4)
    head = EagleHead(shape)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(std=0.5)
    if head.d2t is not None:
        head.name_ids(torch.arange(12) * 3)
    if shape.norm_before_fc or shape.layers > 1:
        write_speculators(head, folder, "someone/target")
    else:
        write_safeailab(head, folder)
    loaded = load_head(str(folder), TargetSizes(WIDTH, 40, 12)).double()
    return loaded, dict(loaded.state_dict())


def make_mix(shape: HeadShape) -> tuple[object, list[int]]:
    """Causal attention over a whole sequence, as the head is given it: with rotations of our table."""
    cos, sin = (part[:LENGTH] for part in rotary(shape, torch.device("cpu"), torch.float64))
    called: list[int] = []

    def turn(states: Tensor) -> Tensor:
        return torch.addcmul(states * cos, states.roll(shape.head_dim // 2, -1), sin)

    def mix(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        called.append(layer)
        parts = [part.transpose(0, 1)[None] for part in (turn(queries), turn(keys), values)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
        return mixed[0].transpose(0, 1).flatten(1)

    return mix, called


def norm(states: Tensor, weight: Tensor) -> Tensor:
    return states / (states.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def attend(states: Tensor, entries: dict[str, Tensor], layer: str) -> Tensor:
    """Causal attention by hand, one query at a time, with the rotation of transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=HEADS * DIM, num_attention_heads=HEADS, head_dim=DIM, max_position_embeddings=32)
    angles = LlamaRotaryEmbedding(config)(states, torch.arange(LENGTH)[None])
    parts = {}
    for name, heads in (("q", HEADS), ("k", KEYS), ("v", KEYS)):
        part = states @ entries[f"{layer}.self_attn.{name}_proj.weight"].T
        if f"{layer}.self_attn.{name}_proj.bias" in entries:
            part = part + entries[f"{layer}.self_attn.{name}_proj.bias"]
        parts[name] = part.view(1, LENGTH, heads, DIM).transpose(1, 2)
    queries, keys = apply_rotary_pos_emb(parts["q"], parts["k"], *angles)
    rows = []
    for place in range(LENGTH):
        heads_out = []
        for head in range(HEADS):
            seen = slice(None, place + 1)
            group = head // (HEADS // KEYS)
            weights = (keys[0, group, seen] @ queries[0, head, place] / math.sqrt(DIM)).softmax(0)
            heads_out.append(weights @ parts["v"][0, group, seen])
        rows.append(torch.cat(heads_out))
    return torch.stack(rows) @ entries[f"{layer}.self_attn.o_proj.weight"].T


def gate(states: Tensor, entries: dict[str, Tensor], layer: str) -> Tensor:
    up, gated = (states @ entries[f"{layer}.mlp.{name}_proj.weight"].T for name in ("up", "gate"))
    return (gated / (1 + (-gated).exp()) * up) @ entries[f"{layer}.mlp.down_proj.weight"].T


def draw(*sizes: int, seed: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(one: Tensor, other: Tensor) -> bool:
    """Norms and angles are computed in float32 in models of every type."""
    return one.shape == other.shape and bool((one - other).abs().max() < 2e-5 * other.abs().max())


@pytest.mark.parametrize("changed", [{}, {"fc_bias": False}, {"qkv_bias": True}], ids=str)
def test_a_step_of_eagle_1(changed: dict[str, bool], tmp_path: Path) -> None:
    """eagle.md, section 2: embedding first, no norm before the first attention, none at the end, the target's head."""
    shape = replace(FIRST, **changed)
    head, entries = save_and_load(shape, tmp_path)
    embedded, features = draw(LENGTH, WIDTH, seed=1), draw(LENGTH, WIDTH, seed=2)
    joined = torch.cat((embedded, features), dim=-1) @ entries["fc.weight"].T
    if shape.fc_bias:
        joined = joined + entries["fc.bias"]
    attended = joined + attend(joined, entries, "layers.0")
    normed = norm(attended, entries["layers.0.post_attention_layernorm.weight"])
    expected = attended + gate(normed, entries, "layers.0")
    mix, called = make_mix(shape)
    found = head.step(embedded, head.enter(features), mix)
    target_head = draw(40, WIDTH, seed=3)
    assert called == [0] and near(found, expected)
    assert near(head.logits(found, target_head), expected @ target_head.T)
    assert torch.equal(head.feed_back(found), found)


OPTIONS: list[dict[str, object]] = [
    {},
    {"norm_before_residual": True},
    {"fc_norm": True},
    {"norm_before_fc": True},
    {"norm_logits": False},
    {"feed_normed": True},
    {"qkv_bias": True},
    {"layers": 2},
]


@pytest.mark.parametrize("changed", OPTIONS, ids=str)
def test_two_steps_of_eagle_3(changed: dict[str, object], tmp_path: Path) -> None:
    """eagle.md, section 5: fc once on the target's streams; from then on outputs are fed back and fc is not run."""
    shape = replace(THIRD, **changed)  # type: ignore[arg-type]
    head, entries = save_and_load(shape, tmp_path)
    streams, target_head = draw(LENGTH, 3 * WIDTH, seed=1), draw(40, WIDTH, seed=3)
    mix, called = make_mix(shape)
    entered = streams
    if shape.fc_norm:
        chunks = [norm(chunk, entries[f"fc_norm.{i}.weight"]) for i, chunk in enumerate(streams.split(WIDTH, -1))]
        entered = torch.cat(chunks, dim=-1)
    if shape.norm_before_fc:
        entered = norm(streams, entries["input_norm.weight"])
    expected, found = entered @ entries["fc.weight"].T, head.enter(streams)
    assert near(found, expected)
    for step in range(2):
        embedded = draw(LENGTH, WIDTH, seed=10 + step)
        expected = third_step(shape, entries, embedded, expected)
        found = head.step(embedded, found, mix)
        assert near(found, expected)
        normed = norm(expected, entries["norm.weight"])
        read = normed if shape.norm_logits else expected
        assert near(head.logits(found, target_head), read @ entries["lm_head.weight"].T)
        expected, found = (normed if shape.feed_normed else expected), head.feed_back(found)
        assert near(found, expected)
    assert called == [*range(shape.layers)] * 2
    assert head.draft_ids().tolist() == list(range(0, 36, 3))


def third_step(shape: HeadShape, entries: dict[str, Tensor], embedded: Tensor, states: Tensor) -> Tensor:
    """o of eagle.md, section 5; behind it, plain layers."""
    name = "layers.0"
    normed = norm(states, entries[f"{name}.hidden_norm.weight"])
    inputs = torch.cat((norm(embedded, entries[f"{name}.input_layernorm.weight"]), normed), dim=-1)
    outputs = (normed if shape.norm_before_residual else states) + attend(inputs, entries, name)
    outputs = outputs + gate(norm(outputs, entries[f"{name}.post_attention_layernorm.weight"]), entries, name)
    for index in range(1, shape.layers):
        name = f"layers.{index}"
        outputs = outputs + attend(norm(outputs, entries[f"{name}.input_layernorm.weight"]), entries, name)
        outputs = outputs + gate(norm(outputs, entries[f"{name}.post_attention_layernorm.weight"]), entries, name)
    return outputs


def test_a_settled_head_computes_the_same(tmp_path: Path) -> None:
    for shape in (FIRST, THIRD, replace(THIRD, qkv_bias=True)):
        head, _ = save_and_load(shape, tmp_path)
        states, embedded = draw(LENGTH, WIDTH, seed=1), draw(LENGTH, WIDTH, seed=2)
        mix, _ = make_mix(shape)
        plain = head.step(embedded, states, mix)
        settled = head.settle().step(embedded, states, mix)
        assert near(settled, plain) and not settled.requires_grad and plain.requires_grad
