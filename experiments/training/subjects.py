"""What is trained: a head of the target, or a model of the pair that drafts. How it begins, drafts and is written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from baselines.distill import DraftModelRecipe
from baselines.eagle.checkpoints import load_head
from baselines.eagle.fields import target_sizes
from baselines.eagle.head import EagleHead
from baselines.eagle.recipes import HeadRecipe, Source
from baselines.eagle.training import cast
from experiments import identity
from experiments.errors import UserError
from experiments.training.setup import TrainJob, name_training
from viasd.decode import Decoder
from viasd.drafting import DrafterSpec, DraftModel, FixedLength
from viasd.engine import Engine
from viasd.method import Method
from viasd.models import Pair, load_model, load_tokenizer
from viasd.verification import RuleVerifier


def make_drafter(job: TrainJob, engine: Engine, source: Source, draft_ids: torch.Tensor) -> nn.Module:
    """What the first step trains: by the seed alone, or the weights that it is to begin with."""
    recipe = job.recipe
    if isinstance(recipe, DraftModelRecipe):
        return load_model(job.pair, recipe.role, torch.float32, engine.device).train().requires_grad_(True)  # type: ignore[no-any-return]
    assert isinstance(recipe, HeadRecipe)
    torch.manual_seed(job.settings.seed)
    fresh = recipe.make(source, draft_ids)
    if job.settings.start is None:
        return fresh
    return begin_with(job, fresh, target_sizes(source.config))


def begin_with(job: TrainJob, fresh: EagleHead, sizes: Any) -> EagleHead:
    """The head that `start` names. Raises UserError for one of another shape than the recipe's."""
    name = str(job.settings.start)
    found = load_head(job.pair.heads.get(name, name), sizes, name)
    if found.shape != fresh.shape:
        unlike = [
            f"{key} {getattr(found.shape, key)} (the recipe's: {getattr(fresh.shape, key)})"
            for key in found.shape.__dataclass_fields__
            if getattr(found.shape, key) != getattr(fresh.shape, key)
        ]
        raise UserError(f"start={name}: its {unlike[0]}; accepted: a head of the recipe's shape")
    head = EagleHead(found.shape)
    head.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in found.state_dict().items()}
    )
    return head


def start_hash(job: TrainJob) -> str | None:
    """Hash of the weights that a training begins with; None: fresh ones."""
    if isinstance(job.recipe, DraftModelRecipe):
        return identity.model_hash(job.pair.path(job.recipe.role))
    name = job.settings.start
    if name is None:
        return None
    return identity.head_hash(Pair(name=job.pair.name, models={}, heads={name: job.pair.heads.get(name, name)}), name)


def describe_training(job: TrainJob, documents: str) -> dict[str, Any]:
    """Who a training is: `name_training`, and the weights that it begins with."""
    return {**name_training(job, documents), "start": start_hash(job)}


def open_decoder(engine: Engine, drafter: Any, draft_length: int) -> Decoder:
    """Speculative decoding with a settled copy of the drafter, in the type of the engine."""
    made: DrafterSpec
    if isinstance(drafter, EagleHead):
        from baselines.eagle.drafter import EagleDrafter

        head = EagleHead(drafter.shape).to(engine.device, engine.dtype)
        head.load_state_dict(drafter.state_dict())
        engine.heads["trained"] = head.settle()
        made = EagleDrafter(head="trained", tree=None)
    else:
        own = cast(copy.deepcopy(drafter), engine.dtype).to(engine.device)
        engine.models["trained"] = own.eval().requires_grad_(False)
        made = DraftModel(role="trained")
    method = Method(name="trained", drafter=made, stop=FixedLength(length=draft_length), verifier=RuleVerifier())
    return method.open(engine)


def write_drafter(job: TrainJob, engine: Engine, drafter: Any, out: Path) -> None:
    """In bfloat16 as a folder."""
    if isinstance(drafter, EagleHead):
        _write_head(job, engine, drafter, out)
        return
    cast(copy.deepcopy(drafter), torch.bfloat16).save_pretrained(out)  # type: ignore[operator]
    load_tokenizer(job.pair).save_pretrained(out)


def _write_head(job: TrainJob, engine: Engine, drafter: EagleHead, out: Path) -> None:
    from baselines.eagle.writing import write_safeailab, write_speculators

    head = EagleHead(drafter.shape).to(torch.bfloat16)
    head.load_state_dict(drafter.state_dict())
    if job.settings.format == "speculators":
        classes = engine.models["target"].config.architectures or []
        write_speculators(head, out, job.pair.models["target"], classes, job.settings.draft_length)
    else:
        write_safeailab(head, out)
