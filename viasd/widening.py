"""The same function in a wider network: what a large model costs, without a large model.

A Llama gets more residual channels, more query heads in each group and more units in its MLPs; depth, head width and
the keys and values of its cache stay. What it computes stays too, because the new residual channels hold zeros: nothing
writes into them, and nothing reads what new heads and units put out. The root mean square of a norm then is
sqrt(old / new) of what it was, which its weights and its epsilon make up for.

Only these zeros are zeros: the output products outside their old block and the new columns of the embedding. All else
that is new is random, of the size that initial weights have, so that no product can be done on fewer numbers.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from viasd.models import PairError

Scale = Literal["1b", "3b", "7b"]
SCALES: dict[str, int] = {name: int(name.removesuffix("b")) * 10**9 for name in get_args(Scale)}  # parameters
MLP_RATIO = 2.7  # units for each residual channel
STEP = 64  # units come in multiples of it

# The axes of a weight by the name of its module; a bias has the first of them.
AXES: dict[str, tuple[str, ...]] = {
    "embed_tokens": ("vocabulary", "residual"),
    "input_layernorm": ("residual",),
    "q_proj": ("queries", "residual"),
    "k_proj": ("keys", "residual"),
    "v_proj": ("keys", "residual"),
    "o_proj": ("residual", "queries"),
    "post_attention_layernorm": ("residual",),
    "gate_proj": ("units", "residual"),
    "up_proj": ("units", "residual"),
    "down_proj": ("residual", "units"),
    "norm": ("residual",),
    "lm_head": ("vocabulary", "residual"),
}
WRITERS = {"embed_tokens", "o_proj", "down_proj"}  # into the residual stream
NORMS = {"input_layernorm", "post_attention_layernorm", "norm"}


@dataclass(frozen=True)
class Widths:
    """What is widened: residual channels, query heads, units of an MLP."""

    residual: int
    heads: int
    units: int


def own_widths(config: Any) -> Widths:
    """The widths that a model has. Raises PairError for any family but Llama's."""
    if config.model_type != "llama":
        raise PairError(f"a model of type {config.model_type} cannot be widened; accepted: llama (LlamaForCausalLM)")
    return Widths(config.hidden_size, config.num_attention_heads, config.intermediate_size)


def widths(config: Any, parameters: int) -> Widths:
    """Widths at which a model has about so many parameters.

    Query heads together are as wide as the residual stream; among such widths, in steps of one head for each group, it
    is the one where the parameters leave about MLP_RATIO units for each residual channel.
    Raises PairError where the model has more parameters already.
    """
    own, names, found = own_widths(config), _parameter_names(config), []
    for heads in count(own.heads, config.num_key_value_heads):
        least = Widths(heads * config.head_dim, heads, own.units)
        rest = parameters - _count(names, config, least)
        if rest < 0:
            break
        each = _count(names, config, replace(least, units=own.units + 1)) - _count(names, config, least)
        if least.residual >= own.residual:
            found.append(replace(least, units=max(own.units, _rounded(own.units + rest / each))))
    if not found:
        least_count = _count(names, config, own)
        raise PairError(f"widening to {parameters} parameters; accepted for this model: at least {least_count}")
    return min(found, key=lambda one: abs(one.units / one.residual - MLP_RATIO))


def widths_at(config: Any, residual: int) -> Widths:
    """Widths for a given number of residual channels. Raises PairError for a number the model cannot have."""
    own, groups = own_widths(config), config.num_key_value_heads
    heads = [number for number in range(own.heads, residual + 1, groups) if residual % number == 0]
    if residual < own.residual or not heads:
        raise PairError(
            f"widening to {residual} channels; accepted for this model: at least {own.residual}, a multiple of "
            f"{own.heads} or of a larger multiple of {groups} (its heads, and the groups that heads come in)"
        )
    nearest = min(heads, key=lambda number: abs(number * config.head_dim - residual))
    return Widths(residual, nearest, max(own.units, _rounded(MLP_RATIO * residual)))


def parameter_count(config: Any, size: Widths | None = None) -> int:
    """Parameters of a model with these widths, or with its own."""
    return _count(_parameter_names(config), config, size or own_widths(config))


def outline(config: Any, size: Widths) -> Any:
    """The wider model without memory: its parameters are on the meta device."""
    from transformers import LlamaForCausalLM  # here: importing viasd must not pay for transformers

    own, wide = own_widths(config), copy.deepcopy(config)
    wide.hidden_size, wide.num_attention_heads = size.residual, size.heads
    wide.intermediate_size = size.units
    wide.rms_norm_eps = config.rms_norm_eps * own.residual / size.residual
    wide.tie_word_embeddings = False  # new channels are zero in the embedding and random in the head
    with torch.device("meta"):
        return LlamaForCausalLM(wide)


@torch.no_grad()
def widened(
    source: Any, size: Widths, dtype: torch.dtype | None = None, seed: int = 0, device: str | torch.device = "cpu"
) -> Any:
    """A model of these widths that computes what `source`, a LlamaForCausalLM, computes.

    The same seed, dtype (None: the source's) and kind of device give the same weights. Takes no more memory than
    the two models. Exact but for rounding: with narrow types that of the norms' weights, unless new / old is a power of
    four.
    """
    config, own = source.config, own_widths(source.config)
    if min(size.residual - own.residual, size.heads - own.heads, size.units - own.units) < 0:
        raise PairError(f"widening to {size}; accepted for this model: at least {own}")
    model = outline(config, size).to(dtype or source.dtype).to_empty(device=device)
    model.model.rotary_emb = type(source.model.rotary_emb)(config=model.config).to(
        device
    )  # its tables are no parameters
    model.generation_config = copy.deepcopy(source.generation_config)
    generator = torch.Generator(device).manual_seed(seed)
    shrink = math.sqrt(own.residual / size.residual)
    for name, weight in tqdm(list(model.named_parameters()), "widening", leave=False, disable=None, unit="weight"):
        old, module = source.get_parameter(name), _module(name)
        if module in WRITERS:
            weight.zero_()
        else:
            weight.normal_(0, config.initializer_range, generator=generator)
        old = old.double() * shrink if module in NORMS else old
        _place(weight.view(_shape(name, config, size)), old.view(_shape(name, config, own)))
    return model.eval().requires_grad_(False)


def _place(wide: Tensor, old: Tensor) -> None:
    """Write an old weight into the corner of a wide one, whose axes are as many and at least as long."""
    wide[tuple(slice(length) for length in old.shape)] = old.to(wide)


def _shape(name: str, config: Any, size: Widths) -> tuple[int, ...]:
    """Lengths of a parameter's axes. Queries are three: groups, heads of a group, channels.

    The library takes the heads of a group, which read the same keys, one after the other: old heads stay in their group
    if new ones are added at the end of each.
    """
    groups, width = config.num_key_value_heads, config.head_dim
    lengths = {
        "vocabulary": (config.vocab_size,),
        "residual": (size.residual,),
        "queries": (groups, size.heads // groups, width),
        "keys": (groups * width,),
        "units": (size.units,),
    }
    axes = AXES[_module(name)]
    return tuple(length for axis in (axes[:1] if name.endswith(".bias") else axes) for length in lengths[axis])


def _module(name: str) -> str:
    """`q_proj` of model.layers.0.self_attn.q_proj.weight."""
    return name.split(".")[-2]


def _parameter_names(config: Any) -> list[str]:
    return [name for name, _ in outline(config, own_widths(config)).named_parameters()]


def _count(names: list[str], config: Any, size: Widths) -> int:
    return sum(math.prod(_shape(name, config, size)) for name in names)


def _rounded(units: float) -> int:
    return round(units / STEP) * STEP
