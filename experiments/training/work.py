"""The work of a training: answers, features, steps with checkpoints, validation, and the drafter in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from baselines.eagle.head import EagleHead
from baselines.eagle.recipes import HeadRecipe, Source, choose_ids
from baselines.eagle.training import Trainer
from experiments import identity
from experiments.errors import UserError
from experiments.threads import VARIABLE, core_count
from experiments.training.answers import answer_all, answers_name, end_marks
from experiments.training.batches import Batches, Cached, Features, Online, Order, count_answers
from experiments.training.curves import Curves, name_points
from experiments.training.documents import Document, Prompt, read_prompts
from experiments.training.processes import Processes
from experiments.training.setup import TrainJob
from experiments.training.subjects import describe_training, make_drafter, write_drafter
from experiments.training.validation import Acceptance, measure_acceptance
from viasd.engine import Engine, resolve_dtype
from viasd.models import context_length, load_model, load_tokenizer

PLACES = ("out", "work_dir")  # say where, not what: a head goes to other machines
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass
class Training:
    """A training that is ready for its first step, or the next one. `seconds`: spent by part, of all its starts."""

    job: TrainJob
    processes: Processes
    training_id: str
    folder: Path
    identity: dict[str, Any]
    trainer: Trainer
    batches: Batches
    engine: Engine
    validation: list[Prompt]
    ends: frozenset[int]
    curves: Curves
    seconds: dict[str, float]
    notices: list[str]
    draft_ids: torch.Tensor

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"


def prepare(job: TrainJob, processes: Processes) -> Training:
    """Load the target, get its answers, and make the head, or take up the last checkpoint."""
    settings, start = job.settings, perf_counter()
    torch.set_num_threads(choose_threads(job, processes))
    tokenizer = load_tokenizer(job.pair)
    train, held_out = read_prompts(job, tokenizer)
    slots = min(context_length(job.pair.path("target")), max(len(one.ids) + one.longest for one in held_out))
    engine = Engine.load(job.pair, ["target"], job.engine.device, job.engine.dtype, slots, job.engine.mode)
    model = reading_model(job, engine)
    ends = end_marks(model, tokenizer)
    documents = get_documents(job, processes, model, ends, train)
    seconds = {"answers": perf_counter() - start}
    digest = identity.digest([[one.ids, one.first] for one in documents])
    content = describe_training(job, digest)
    training_id = identity.digest(content)
    folder = settings.work / training_id
    folder.mkdir(parents=True, exist_ok=True)
    counts = count_answers(documents, engine.vocabulary)
    size = job.recipe.draft_vocabulary if isinstance(job.recipe, HeadRecipe) else None
    draft_ids = choose_ids(counts, size)
    trainer = make_trainer(job, processes, engine, draft_ids)
    start = perf_counter()
    features = open_features(job, processes, model, documents, digest)
    seconds |= {"features": perf_counter() - start, "training": 0.0, "validation": 0.0}
    order = Order([len(one.ids) for one in documents], settings.batch, settings.seed)
    batches = Batches(documents, order, features, job.recipe, engine.device)
    batches.rank, batches.processes, batches.seed = processes.rank, processes.count, settings.seed
    training = Training(
        job, processes, training_id, folder, content, trainer, batches, engine, held_out, ends,
        Curves(folder, job.tracking), seconds, describe_data(documents, order, counts, trainer.drafter),
        draft_ids,
    )  # fmt: skip
    take_up(training)
    return training


def choose_threads(job: TrainJob, processes: Processes) -> int:
    """As asked, else $OMP_NUM_THREADS, else all cores, shared among the processes: batches keep them all busy."""
    if job.engine.threads != "auto":
        return job.engine.threads
    told = os.environ.get(VARIABLE, "").partition(",")[0].strip()
    return int(told) if told.isdigit() and int(told) > 0 else max(1, core_count() // processes.count)


def reading_model(job: TrainJob, engine: Engine) -> Any:
    """The target as it answers and is read: the engine's, or another one of its own type."""
    dtype = DTYPES[job.settings.target_dtype]
    same = dtype == resolve_dtype(job.engine.dtype, engine.device)
    return engine.models["target"] if same else load_model(job.pair, "target", dtype, engine.device)


def get_documents(
    job: TrainJob, processes: Processes, model: Any, ends: frozenset[int], prompts: list[Prompt]
) -> list[Document]:
    """The documents that are trained on; the first process has the target answer, the others read what it stored."""
    settings, room = job.settings, context_length(job.pair.path("target"))
    if settings.answers == "given":
        return [Document.of(one, one.given) for one in prompts if len(one.ids) + len(one.given) <= room]
    target = identity.model_hash(job.pair.path("target"))
    path = settings.work / answers_name(target, prompts, settings.answer_batch, settings.target_dtype)
    if not processes.first:
        processes.wait()
    documents = answer_all(model, ends, prompts, path, settings.answer_batch, room)
    if processes.first:
        processes.wait()
    return documents


def make_trainer(job: TrainJob, processes: Processes, engine: Engine, draft_ids: torch.Tensor) -> Trainer:
    """With the drafter as it is before the first step."""
    settings, source = job.settings, Source.of(engine.models["target"])
    if settings.batch < processes.count:
        raise UserError(f"batch={settings.batch}: there are {processes.count} processes; accepted: as many or more")
    own = torch.float64 if settings.precision == "float64" else torch.float32
    drafter = make_drafter(job, engine, source, draft_ids).to(engine.device, own)
    trainer = Trainer(drafter, job.recipe, source, job.optimizer, settings.steps, processes.reduce)
    trainer.compute_in(DTYPES[settings.precision])
    return trainer


def open_features(job: TrainJob, processes: Processes, model: Any, documents: list[Document], digest: str) -> Features:
    """Features as the settings say; the first process writes what is cached, which trainings share."""
    taps = job.recipe.taps(len(model.get_decoder().layers))
    if job.settings.features == "online":
        return Online(model, taps)
    if not processes.first:
        processes.wait()
    target = identity.model_hash(job.pair.path("target"))
    name = identity.digest([digest, target, taps, job.settings.target_dtype, job.settings.batch])
    cached = Cached(job.settings.work / f"features_{name}.bin", model, taps, documents, job.settings.batch)
    if processes.first:
        processes.wait()
    return cached


def describe_data(documents: list[Document], order: Order, counts: torch.Tensor, drafter: Any) -> list[str]:
    """What a person should know before it starts."""
    answers = int(counts.sum())
    ids = drafter.draft_ids() if isinstance(drafter, EagleHead) else None
    covered = answers if ids is None else int(counts[ids.cpu()].sum())
    used = int((counts > 0).sum())
    return [
        f"{len(documents)} documents, {answers} answer tokens, {order.per_epoch} steps in an epoch",
        f"draft vocabulary: {len(counts) if ids is None else len(ids)} ids, {covered / max(1, answers):.4%} of answer "
        f"tokens ({used} different ids)",
    ]


def take_up(training: Training) -> None:
    """Go on from the checkpoint, where there is one."""
    path = training.checkpoint
    if path.exists():
        state = torch.load(path, map_location=training.engine.device, weights_only=True)
        training.trainer.restore(state["trainer"])
        for part, spent in state["seconds"].items():
            training.seconds[part] += spent


def save(training: Training) -> None:
    """Write a checkpoint so that a kill leaves either the old one or the new one."""
    if training.processes.first:
        partial = training.checkpoint.with_suffix(".partial")
        torch.save({"trainer": training.trainer.state(), "seconds": training.seconds}, partial)
        os.replace(partial, training.checkpoint)


def run(training: Training) -> None:
    """Train to the last step."""
    settings, trainer, curves = training.job.settings, training.trainer, training.curves
    first = training.processes.first
    if first:
        curves.open(trainer.step, training.training_id, f"drafter-{training.job.pair.name}", record(training))
    code = 1
    try:
        with tqdm(
            total=settings.steps,
            initial=trainer.step,
            desc="training",
            unit="step",
            disable=None if training.processes.talks else True,
        ) as bar:
            while trainer.step < settings.steps:
                take_step(training, bar)
        code = 0
    finally:
        if first and (told := curves.close(code)):
            print(told)


def take_step(training: Training, bar: Any) -> None:
    """One step, with all that is due after it."""
    settings, trainer, start = training.job.settings, training.trainer, perf_counter()
    measured = trainer.update(training.batches.load(trainer.step))
    training.seconds["training"] += perf_counter() - start
    step, last = trainer.step, trainer.step == settings.steps
    bar.update()
    bar.set_postfix(loss=f"{measured.total:.3f}", agreement=f"{measured.agreements[0]:.3f}", refresh=False)
    first = training.processes.first
    if first and (step % settings.log_every == 0 or last):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        training.curves.tell(step, name_points(measured, rate))
    if step % settings.validate_every == 0 or last:
        if first:
            validate(training)
        training.processes.wait()
    if step % settings.save_every == 0 or last:
        save(training)


def validate(training: Training) -> Acceptance:
    """Measure the acceptance length, and tell it."""
    start, step = perf_counter(), training.trainer.step
    drafter, length = training.trainer.drafter, training.job.settings.draft_length
    found = measure_acceptance(training.engine, drafter, training.validation, length, training.ends)
    training.seconds["validation"] += perf_counter() - start
    places = {f"validation/acceptance_{place}": share for place, share in enumerate(found.places) if share == share}
    training.curves.tell(step, {"validation/acceptance_length": found.length, **places})
    if training.processes.talks:
        tqdm.write(f"step {step}: acceptance length {found.length:.3f}")
    return found


def record(training: Training) -> dict[str, Any]:
    """What is told of a training beside its curves."""
    drafter = training.trainer.drafter
    return {
        "training_id": training.training_id,
        "config": training.job.composed,
        "identity": training.identity,
        "provenance": identity.provenance(training.engine.device),
        "processes": training.processes.count,
        "threads": torch.get_num_threads(),
        "parameters": sum(one.numel() for one in drafter.parameters()),
        "notices": training.notices,
    }


def write(training: Training) -> Path:
    """The drafter in bfloat16 as a folder, and beside its weights how it came about."""
    settings = training.job.settings
    out = Path(settings.out).expanduser() if settings.out else training.folder / "head"
    write_drafter(training.job, training.engine, training.trainer.drafter, out)
    seconds = {part: round(spent, 1) for part, spent in training.seconds.items()}
    last = [point for point in training.curves.read() if "validation/acceptance_length" in point][-1]
    told = {**record(training), "seconds": seconds, "validation": last}
    told["config"] = {key: value for key, value in told["config"].items() if key not in PLACES}
    (out / "training.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return out
