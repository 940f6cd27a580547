"""Training heads: batches, steps that resume to the bit, processes that agree, the command, and real acceptance."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from commands import call, check_mistake
from torch import Tensor

from baselines.eagle.features import read_target
from baselines.eagle.head import EagleHead
from baselines.eagle.recipes import Eagle1Recipe, Eagle3Recipe, Recipe, Source, choose_ids
from baselines.eagle.training import Measured, OptimizerSpec, Trainer
from baselines.eagle.ttt import Batch, Window, unroll
from experiments.config import CHECKOUT
from experiments.errors import UserError
from experiments.tasks.reasoning import Reasoning
from experiments.training import work
from experiments.training.answers import answer_all, write_answers
from experiments.training.batches import Batches, Cached, Online, Order, fill
from experiments.training.documents import Document, Prompt, turns
from experiments.training.validation import measure_acceptance
from viasd.engine import Engine

ModelFactory = Callable[..., Any]
RECIPES: dict[str, Recipe] = {
    "eagle3": Eagle3Recipe(steps=3, draft_vocabulary=24),
    "all places": Eagle3Recipe(steps=2, draft_vocabulary=None, average="all"),
    "lk": Eagle3Recipe(steps=2, draft_vocabulary=40, loss="lk"),
    "feature loss": Eagle3Recipe(steps=2, draft_vocabulary=40, feature_weight=0.5, aux_layers=(1, 3, 5)),
    "eagle1": Eagle1Recipe(),
}


def same(tensor: Tensor) -> Tensor:
    return tensor


def greedy_documents(model: Any, count: int = 12, length: int = 14) -> list[Document]:
    """Prompts of 3 to 5 tokens with the model's own answers."""
    generator = torch.Generator().manual_seed(1)
    prompts = [
        Prompt(torch.randint(1, 48, (3 + number % 3,), generator=generator).tolist(), [], length)
        for number in range(count)
    ]
    answers = [write_answers(model, frozenset(), [prompt], 64)[0] for prompt in prompts]
    return [Document.of(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def make_trainer(
    model: Any, recipe: Recipe, reduce: Callable[[Tensor], Tensor] = same, steps: int = 8, rate: float = 1e-2
) -> Trainer:
    torch.manual_seed(0)
    head = recipe.make(Source.of(model), choose_ids(torch.arange(48), recipe.draft_vocabulary)).double()
    return Trainer(head, recipe, Source.of(model), OptimizerSpec(rate=rate), steps, reduce)


def make_batches(model: Any, documents: list[Document], trainer: Trainer, batch: int = 4) -> Batches:
    order = Order([len(one.ids) for one in documents], batch, seed=0)
    features = Online(model, trainer.drafter.shape.taps(len(model.model.layers)))
    return Batches(documents, order, features, trainer.recipe, torch.device("cpu"))


@pytest.fixture
def model(tiny: ModelFactory) -> Any:
    return tiny("llama", layers=6)


# --- steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_resumed_goes_on_to_the_bit(name: str, model: Any) -> None:
    documents, recipe = greedy_documents(model), RECIPES[name]
    whole, first, second = (make_trainer(model, recipe) for _ in range(3))
    batches = make_batches(model, documents, whole)
    told = [whole.update(batches.load(step)) for step in range(6)]
    for step in range(3):
        first.update(batches.load(step))
    second.drafter.load_state_dict({key: torch.zeros_like(value) for key, value in second.drafter.state_dict().items()})
    second.restore(through_a_file(first.state()))
    assert [second.update(batches.load(second.step)) for _ in range(3)] == told[3:]
    for key, value in whole.drafter.state_dict().items():
        assert torch.equal(value, second.drafter.state_dict()[key])
    assert told[-1].total != told[0].total


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    copy: dict[str, Any] = torch.load(buffer, weights_only=True)
    return copy


class Meeting:
    """Sums over two threads that stand for two processes."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)
        self.brought: dict[int, Tensor] = {}

    def reducer(self, rank: int) -> Callable[[Tensor], Tensor]:
        def reduce(tensor: Tensor) -> Tensor:
            self.brought[rank] = tensor.clone()
            self.barrier.wait()
            total = self.brought[0] + self.brought[1]
            self.barrier.wait()
            return total

        return reduce


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_compute_what_one_does(name: str, model: Any) -> None:
    documents, recipe, meeting = greedy_documents(model), RECIPES[name], Meeting()
    alone = make_trainer(model, recipe)
    wanted = [alone.update(make_batches(model, documents, alone).load(step)) for step in range(3)]
    trainers = [make_trainer(model, recipe, meeting.reducer(rank)) for rank in (0, 1)]
    told: dict[int, list[Measured]] = {}

    parts: dict[int, list[Batch]] = {}
    for rank, trainer in enumerate(trainers):
        batches = make_batches(model, documents, trainer)
        batches.rank, batches.processes = rank, 2
        parts[rank] = [batches.load(step) for step in range(3)]

    def train(rank: int) -> None:
        told[rank] = [trainers[rank].update(batch) for batch in parts[rank]]

    threads = [threading.Thread(target=train, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, two, three in zip(wanted, told[0], told[1], strict=True):
        assert two == three
        assert two.losses == pytest.approx(one.losses, rel=1e-5)
        assert two.agreements == pytest.approx(one.agreements)


@pytest.mark.parametrize("name", ["eagle3", "eagle1"])
def test_lower_precision_moves_the_same_head(name: str, model: Any) -> None:
    """Products in bfloat16, weights kept wider: losses are near, and small steps are not lost."""
    documents = greedy_documents(model)
    exact, rough = (make_trainer(model, RECIPES[name], rate=1e-5) for _ in range(2))
    rough.compute_in(torch.bfloat16)
    before = rough.drafter.fc.weight.detach().clone()
    batch = make_batches(model, documents, exact).load(0)
    assert rough.update(batch).total == pytest.approx(exact.update(batch).total, rel=0.05)
    assert rough.drafter.fc.weight.dtype == torch.float64
    moved = (rough.drafter.fc.weight - before).detach().abs()
    assert 0 < float(moved.max()) <= 1.01e-5


def test_rates_rise_and_fall() -> None:
    optimizer = OptimizerSpec(rate=1.0, warm_up=0.1, last_rate=0.2)
    factors = [optimizer.factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0) and factors[100] == pytest.approx(0.2)
    assert all(later <= earlier for earlier, later in pairwise(factors[10:]))


@pytest.mark.parametrize("clip", ["norm", "value", "none"])
def test_gradients_are_clipped_as_asked(clip: Any, model: Any) -> None:
    trainer = make_trainer(model, RECIPES["eagle3"])
    trainer.spec = OptimizerSpec(rate=1e-3, clip=clip, clip_at=1e-3)
    seen: list[Tensor] = []
    trainer.optimizers[0].register_step_pre_hook(
        lambda *_: seen.append(torch.cat([one.grad.flatten() for one in trainer.drafter.parameters()]))  # type: ignore[union-attr]
    )
    trainer.update(make_batches(model, greedy_documents(model), trainer).load(0))
    norm, largest = float(seen[0].norm()), float(seen[0].abs().max())
    assert {"norm": norm <= 1.001e-3, "value": largest <= 1e-3 < norm, "none": largest > 1e-3}[clip]


def test_the_most_frequent_ids_are_drafted() -> None:
    counts = torch.tensor([5, 0, 9, 5, 5])
    assert choose_ids(counts, 3).tolist() == [0, 2, 3]  # of equals the lower ones
    assert choose_ids(counts, None).tolist() == choose_ids(counts, 5).tolist() == list(range(5))


def test_tokens_that_cannot_be_drafted_are_dropped_from_the_loss_and_not_from_agreement(model: Any) -> None:
    documents = greedy_documents(model)
    recipe = Eagle3Recipe(steps=1, draft_vocabulary=10)
    trainer = make_trainer(model, recipe)
    batch = make_batches(model, documents, trainer, batch=12).load(0)
    ids = trainer.drafter.draft_ids()
    assert ids is not None
    answers = torch.cat([torch.tensor(one.ids[one.first :]) for one in documents])
    (sums,) = recipe.measure(trainer.drafter, batch, Source.of(model))
    assert int(sums.judged) == len(answers)
    assert int(sums.places) == int(torch.isin(answers, ids).sum()) < len(answers)


# --- documents, answers, features -----------------------------------------------------------------------------------


def test_batches_depend_on_seed_and_step_alone() -> None:
    lengths = [7 + number * 5 % 11 for number in range(50)]
    first, second, other = (Order(lengths, 4, seed) for seed in (0, 0, 1))
    steps = list(range(3 * first.per_epoch))
    backwards = {step: second.documents(step) for step in reversed(steps)}
    assert [first.documents(step) for step in steps] == [backwards[step] for step in steps]
    assert [first.documents(step) for step in steps] != [other.documents(step) for step in steps]
    epochs = [sorted(one for step in steps[at : at + 12] for one in first.documents(step)) for at in (0, 12)]
    assert all(len(set(epoch)) == 48 for epoch in epochs) and epochs[0] != epochs[1]


def test_answers_in_a_batch_are_the_single_ones_and_are_stored(model: Any, tmp_path: Path) -> None:
    documents = greedy_documents(model, count=7)
    prompts = [Prompt(one.ids[: one.first], [], 14) for one in documents]
    path = tmp_path / "answers.jsonl"
    assert answer_all(model, frozenset(), prompts, path, 3, 64) == documents
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # interrupted while writing
    assert answer_all(model, frozenset(), prompts, path, 3, 64) == documents
    assert path.read_bytes() == whole
    assert answer_all(None, frozenset(), prompts, path, 3, 64) == documents  # nothing is answered again


def test_an_answer_ends_with_its_end_mark_or_at_the_edge_of_the_context(model: Any) -> None:
    document = greedy_documents(model, count=1)[0]
    prompt = Prompt(document.ids[: document.first], [], 14)
    end = document.ids[document.first + 4]
    (answer,) = write_answers(model, frozenset({end}), [prompt], 64)
    assert answer[-1] == end and answer.count(end) == 1
    (short,) = write_answers(model, frozenset(), [prompt], len(prompt.ids) + 2)
    assert short == document.ids[document.first :][:2]


@pytest.mark.parametrize("recipe", ["eagle3", "eagle1"])
def test_cached_features_are_those_of_the_online_target(recipe: str, model: Any, tmp_path: Path) -> None:
    documents = greedy_documents(model)
    taps = make_trainer(model, RECIPES[recipe]).drafter.shape.taps(len(model.model.layers))
    numbers = [5, 0, 2]
    ids = fill([documents[number].ids for number in numbers])
    online = Online(model, taps).read(numbers, ids)
    for opened in (model, None):  # the second time nothing is read again
        source = model if opened is None else opened
        cached = Cached(tmp_path / "features.bin", source, taps, documents, 5)
        for found, wanted in zip(cached.read(numbers, ids), online, strict=True):
            for row, number in enumerate(numbers):
                length = len(documents[number].ids)
                assert torch.equal(found[row, :length], wanted[row, :length].to(torch.bfloat16))


def test_features_are_the_streams_that_enter_the_layers(model: Any) -> None:
    taps = make_trainer(model, RECIPES["eagle3"]).drafter.shape.taps(len(model.model.layers))
    ids = torch.tensor([[3, 9, 4, 7]])
    hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    features, states = read_target(model, ids, taps)
    assert torch.equal(features, torch.cat([hidden[layer] for layer in (2, 3, 3)], dim=-1))
    assert torch.equal(states, hidden[-1])


def test_noise_is_scaled_by_length_and_drawn_by_step(model: Any) -> None:
    documents = greedy_documents(model)
    trainer = make_trainer(model, Eagle1Recipe(feature_noise=0.1))
    batches = make_batches(model, documents, trainer)
    batch, again = batches.load(1), batches.load(1)
    assert torch.equal(batch.features, again.features)
    for row, stop in enumerate(batch.stops.tolist()):
        noise = (batch.features - batch.states)[row, :stop]
        assert 0.8 * 51.2 / stop < float(noise.abs().max()) <= 51.2 / stop


LINES = {
    "prompt": ('{"prompt": "a", "response": "b"}', [("a", "b")]),
    "messages": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        [([{"role": "user", "content": "a"}], "b")],
    ),
    "two answers": (
        '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},'
        ' {"from": "human", "value": "c"}, {"from": "gpt", "value": "d"}]}',
        [
            ([{"role": "user", "content": "a"}], "b"),
            (
                [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                ],
                "d",
            ),
        ],
    ),
    "empty": ("", []),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_of_a_file(name: str) -> None:
    line, wanted = LINES[name]
    assert list(turns(line, "here")) == wanted


@pytest.mark.parametrize("line", ["{", '{"text": "a"}', '{"conversations": [{"from": "judge", "value": "a"}]}', "[1]"])
def test_lines_that_are_not_understood(line: str) -> None:
    with pytest.raises(UserError, match=r"data=x: line 3: not understood.*accepted"):
        list(turns(line, "data=x: line 3"))


# --- acceptance -----------------------------------------------------------------------------------------------------


def walk(head: EagleHead, model: Any, document: Document, length: int) -> list[int]:
    """Tokens committed in each round of greedy decoding, as the unrolled head and the target's rows tell."""
    ids = torch.tensor([document.ids])
    features, states = read_target(model, ids, head.shape.taps(len(model.model.layers)))
    source, stop = Source.of(model), len(document.ids)
    batch = Batch(ids, features, states, torch.tensor([document.first]), torch.tensor([stop]))
    window = Window.of(batch, length)
    with torch.no_grad():
        outputs = unroll(head, batch, source.embed, length, window)
    wanted, drafted = source.logits(states[0]).argmax(-1), head.draft_ids()
    rounds, place = [], document.first - 2
    while place + 2 < stop:
        kept = 0
        while kept < min(length, stop - place - 2):
            output = window.find(outputs[kept], torch.tensor([0]), torch.tensor([place]))
            chosen = head.logits(output, source.head)[0].argmax()
            if (chosen if drafted is None else drafted[chosen]) != wanted[place + 1 + kept]:
                break
            kept += 1
        rounds.append(min(kept + 1, stop - place - 2))
        place += rounds[-1]
    return rounds


@pytest.mark.parametrize("name", ["eagle3", "eagle1"])
def test_training_raises_the_acceptance_that_decoding_reaches(name: str, model: Any) -> None:
    """And each round of the real loop is what the unrolled head says, token by token."""
    documents, recipe, length = greedy_documents(model), RECIPES[name], 3
    trainer = make_trainer(model, recipe, steps=80)
    batches = make_batches(model, documents, trainer, batch=12)
    told = [trainer.update(batches.load(step)) for step in range(80)]
    assert told[-1].total < 0.5 * told[0].total and told[-1].agreements[0] > told[0].agreements[0] + 0.3
    engine = Engine({"target": model}, 48, 64)
    prompts = [Prompt(one.ids[: one.first], [], len(one.ids) - one.first) for one in documents]
    found = measure_acceptance(engine, trainer.drafter, prompts, length, frozenset())
    rounds = [one for document in documents for one in walk(trainer.drafter, model, document, length)]
    assert found.tokens == sum(rounds) and found.length == pytest.approx(sum(rounds) / len(rounds))
    assert found.length > 1.3
    reached = [sum(one > place + 1 for one in rounds) for place in range(length)]
    assert found.places[0] >= reached[0] / len(rounds) - 1e-9


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/train_eagle.py; scripts are no package."""
    sys.path.insert(0, str(CHECKOUT / "scripts"))
    try:
        import train_eagle
    finally:
        sys.path.remove(str(CHECKOUT / "scripts"))
    return train_eagle


QUICK = (
    "tasks=[reasoning]", "prompts=6", "answers=given", "steps=3", "batch=3", "validate_prompts=1", "draft_length=2",
    "max_new_tokens=12", "log_every=1", "engine.threads=1", "target_dtype=float32",
    "precision=float32",
)  # fmt: skip


def test_the_command_trains_and_goes_on(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = (*QUICK, f"work_dir={tmp_path}", "track=wandb")
    code, told, error = call(capsys, script.main, *typed)
    assert code == 0, error
    (folder,) = (path.parent for path in tmp_path.glob("*/log.jsonl"))
    points = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [1, 2, 3, 3]
    assert {"train/loss", "train/loss_1", "train/agreement_1", "train/rate"} <= points[0].keys()
    assert points[-1]["validation/acceptance_length"] >= 1
    assert "wandb: offline in" in told and list(folder.glob("wandb/offline-run-*/*.wandb"))
    record = json.loads((folder / "head" / "training.json").read_text())
    assert record["validation"] == points[-1] and set(record["seconds"]) >= {"answers", "training", "validation"}
    weights = (folder / "head" / "model.safetensors").read_bytes()
    assert len(weights) <= 4e6
    call(capsys, script.main, *typed)  # nothing is left to do but to write
    assert (folder / "head" / "model.safetensors").read_bytes() == weights
    assert json.loads((folder / "head" / "config.json").read_text())["draft_vocab_size"] == 512


def test_a_training_that_was_stopped_ends_in_the_same_bits(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = (*QUICK, "steps=5", "save_every=2", "validate_every=2")
    call(capsys, script.main, *typed, f"work_dir={tmp_path / 'whole'}")
    step, done = work.take_step, []

    def stop_after_three(*arguments: Any) -> None:
        step(*arguments)
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(work, "take_step", stop_after_three)
    code, _, error = call(capsys, script.main, *typed, f"work_dir={tmp_path / 'stopped'}")
    assert code == 130 and "the same command goes on" in error
    assert call(capsys, script.main, *typed, f"work_dir={tmp_path / 'stopped'}")[0] == 0
    assert len(done) == 3 + 3  # steps 3 to 5 again
    for name in ("log.jsonl", "head/model.safetensors"):
        (whole,), (stopped,) = ((tmp_path / one).glob(f"*/{name}") for one in ("whole", "stopped"))
        assert whole.read_bytes() == stopped.read_bytes()


def test_a_file_and_features_in_a_cache(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = Reasoning(name="reasoning").examples("train", 4)
    lines = [json.dumps({"prompt": one.prompt, "response": one.reference}) for one in examples]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    changed = [one for one in QUICK if not one.startswith(("tasks", "answers"))]
    code, told, error = call(
        capsys, script.main, *changed, f"data={tmp_path / 'data.jsonl'}", f"work_dir={tmp_path}", "answers=target",
        "features=cached", "recipe=eagle1", "answer_batch=2",
    )  # fmt: skip
    assert code == 0, error
    assert "3 documents" in told
    assert len(list(tmp_path.glob("answers_*.jsonl"))) == 1 and list(tmp_path.glob("features_*.bin"))


MISTAKES = {
    "steps=0": ["steps=0"],
    "batches=3": ["batches", "no such key"],
    "recipe.loss=l2": ["recipe", "loss", "l2"],
    "tasks=[cooking]": ["cooking", "did you mean 'coding'"],
    "data=nowhere.jsonl": ["data=nowhere.jsonl", "no such file"],
    "recipe=eagle4": ["recipe=eagle4", "eagle3"],
    "processes=many": ["processes", "many"],
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistakes_end_in_one_line(
    typed: str, script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = call(capsys, script.main, typed, f"work_dir={tmp_path}")
    check_mistake(code, error, MISTAKES[typed])
    assert not list(tmp_path.iterdir())


def test_accelerate_is_asked_for_only_where_it_is_wanted(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    code, _, error = call(capsys, script.main, "processes=accelerate", f"work_dir={tmp_path}")
    check_mistake(code, error, ["processes=accelerate", "not installed", "processes=plain"])
    assert call(capsys, script.main, *QUICK, f"work_dir={tmp_path}", "recipe=eagle1")[0] == 0


def test_one_process_under_accelerate_has_the_same_losses(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    logs = []
    for how in ("plain", "accelerate"):
        code, _, error = call(
            capsys, script.main, *QUICK, f"work_dir={tmp_path / how}", f"processes={how}", "engine.device=cpu"
        )
        assert code == 0, error
        (log,) = (tmp_path / how).glob("*/log.jsonl")
        logs.append(log.read_text())
    assert logs[0] == logs[1]
