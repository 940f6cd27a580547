"""Load a published head (EAGLE-1/2 and EAGLE-3 of several trainers) as an EagleHead.

What is read: SafeAILab's EAGLE-1/2 and EAGLE-3, SpecForge, speculators eagle3 and exports of Model-Optimizer. The
reference loader takes what it finds; this one is strict: every key must be expected, every expected one there, sizes
as the config says. Two things are passed over: an EAGLE-1 file's `embed_tokens.weight`, since the target's is meant
(eagle.md), and in vLLM's wrapper of one `lm_head.weight` too, which is a copy of the target's head.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from baselines.eagle.fields import Reading, TargetSizes, flatten
from baselines.eagle.files import find_folder, first_line, read_config, read_tensors
from baselines.eagle.formats import (
    TITLES,
    Format,
    HeadError,
    check_sizes,
    detect,
    expected_sizes,
    optional_sizes,
    own_name,
)
from baselines.eagle.head import EagleHead, HeadShape
from baselines.eagle.published import read_shape
from viasd.models import PairError

ACCEPTED = (
    "a folder, viasd://<folder of the package> or hub id[@revision] with config.json and safetensors or "
    "pytorch_model.bin of an EAGLE-1/2, EAGLE-3, SpecForge, speculators eagle3 or Model-Optimizer head"
)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class LoadedHead(NamedTuple):
    """A head, the format it was in, and what the user should be told about how it was read."""

    head: EagleHead
    format: Format
    notices: tuple[str, ...]


def load_head(name: str, target: TargetSizes, role: str = "eagle3") -> EagleHead:
    """The head in a folder, in one of the package (`viasd://`), or on the hub (`owner/name`, `owner/name@revision`).

    Its weights are as stored (half precision too; `head.to(dtype)` casts them and leaves the vocabulary's maps whole
    numbers) on the CPU. What `read_head` notices is given as a warning. `role`: the name of the head in the pair.
    Raises PairError, in one line, for whatever cannot be read as a head of this target.
    """
    loaded = read_head(name, target, role)
    for notice in loaded.notices:
        warnings.warn(f"pair.heads.{role}={name}: {notice}", stacklevel=2)
    return loaded.head


def read_head(name: str, target: TargetSizes, role: str = "eagle3") -> LoadedHead:
    """As `load_head`, with its format and notices instead of warnings."""
    try:
        folder = find_folder(name)
        return assemble(read_config(folder), read_tensors(folder), target)
    except HeadError as error:
        raise PairError(f"pair.heads.{role}={name}: {first_line(error)}; accepted: {ACCEPTED}") from error


def assemble(config: dict[str, Any], tensors: dict[str, Tensor], target: TargetSizes) -> LoadedHead:
    """The head that a config and a state dict with published keys make. Raises HeadError where they make none."""
    sizes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    fields, wrapped = flatten(config)
    reading = Reading(fields, sizes, target, wrapped)
    found = detect(config, sizes, reading.number("hidden_size"))
    try:
        shape = read_shape(reading, found)
        needed, optional = expected_sizes(shape, found), optional_sizes(shape, found, wrapped)
        if found == "model-optimizer":  # has d2t alone; t2d is what it says
            optional["t2d"] = needed.pop("t2d", (shape.vocabulary,))
        check_sizes(sizes, needed, optional)
        entries = {own_name(key, found): tensors[key] for key in needed}
        check_types(entries)
        entries |= read_maps(shape, tensors)
    except HeadError as error:
        raise HeadError(f"read as {TITLES[found]}: {error}") from error
    if wrapped and "lm_head.weight" in tensors and found == "safeailab-1":
        reading.notices.append("lm_head.weight of vLLM's wrapper is not read: the target's head is taken")
    reading.notices.extend(lossy_acceptance(config))
    with torch.device("meta"):
        head = EagleHead(shape)
    head.load_state_dict(entries, assign=True)
    return LoadedHead(head, found, tuple(reading.notices))


def check_types(entries: dict[str, Tensor]) -> None:
    """Raise HeadError for weights that are no plain floating numbers: quantized ones need their scales."""
    for key, tensor in entries.items():
        if key not in ("d2t", "t2d") and tensor.dtype not in FLOATS:
            kinds = ", ".join(str(one).removeprefix("torch.") for one in FLOATS)
            raise HeadError(f"{key} is of type {str(tensor.dtype).removeprefix('torch.')}, not one of {kinds}")


def read_maps(shape: HeadShape, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The maps between the vocabularies, checked; none where they are the same.

    `d2t` [draft ids] holds what is to be added to a draft id, `t2d` [V] marks the target's ids that have one. Raises
    HeadError for ids that are not the target's, that are there twice, or on which the two disagree.
    """
    offsets, marks = tensors.get("d2t"), tensors.get("t2d")
    if shape.version == 1 or (offsets is None and marks is None):
        return {}
    for key, tensor, kinds in (("d2t", offsets, (torch.int64, torch.int32)), ("t2d", marks, (torch.bool,))):
        if tensor is not None and tensor.dtype not in kinds:
            raise HeadError(f"{key} is of type {tensor.dtype}, not {kinds[0]}".replace("torch.", ""))
    if shape.draft_vocabulary is None:
        if (offsets is not None and offsets.any()) or (marks is not None and not marks.all()):
            raise HeadError("draft_vocab_size is the target's, but d2t or t2d leave ids out")
        return {}
    assert offsets is not None  # an expected key
    ids = offsets.long() + torch.arange(len(offsets))
    if int(ids.min()) < 0 or int(ids.max()) >= shape.vocabulary:
        raise HeadError(
            f"d2t leads to ids from {int(ids.min())} to {int(ids.max())}, the target has {shape.vocabulary}"
        )
    named = torch.zeros(shape.vocabulary, dtype=torch.bool).index_fill(0, ids, True)
    if int(named.sum()) != len(ids):
        raise HeadError(f"d2t leads to {int(named.sum())} different ids, there are {len(ids)} draft ids")
    if marks is not None and int(marks.sum()) != len(ids):
        raise HeadError(f"t2d marks {int(marks.sum())} ids, there are {len(ids)} draft ids")
    if marks is not None and not torch.equal(marks.nonzero()[:, 0], ids):
        raise HeadError("d2t and t2d name different ids, or not in ascending order")
    return {"d2t": offsets.long(), "t2d": named}


def lossy_acceptance(config: dict[str, Any]) -> list[str]:
    """A notice for fields of speculators that ask for lossy acceptance: here the method decides, not its head."""
    methods = (config.get("speculators_config") or {}).get("proposal_methods") or []
    asked = {
        f"{key}={method[key]}"
        for method in methods
        for key, exact in (("verifier_accept_k", 1), ("accept_tolerance", 0))
        if (method.get(key) or 0) > exact
    }
    if not asked:
        return []
    return [f"{', '.join(sorted(asked))} ask for lossy acceptance: not followed, the method's verifier decides"]
