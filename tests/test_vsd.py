"""Paths and their loss (baselines/vsd.py) against loops over single paths, and the recipes that use them."""

from __future__ import annotations

import copy
from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.distill import DraftModelRecipe
from baselines.eagle import recipes
from baselines.eagle.recipes import Eagle3Recipe, Source, choose_ids, find_columns
from baselines.eagle.training import OptimizerSpec, Trainer
from baselines.eagle.ttt import Answers, Batch, Window, unroll
from baselines.vsd import PathLoss, Paths, StepRows, draw_paths
from tests.conftest import ModelFactory

STEPS, IDS = 3, 4
DOCUMENTS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])  # whose answer each of nine places belongs to
FOLLOWED = torch.tensor([True, True, False, True, True, True, True, True, True])


def make_steps(wanted: Tensor, seed: int = 0) -> list[StepRows]:
    """Rows of an unrolled drafter at all places that have so many before them in their own prompt and answer."""
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for step in range(STEPS):
        places = torch.arange(len(wanted))[step > 1 :]  # one index is missing in a later step
        logs = (torch.randn(len(places), IDS, generator=generator, dtype=torch.float64) * 2).log_softmax(-1)
        steps.append(StepRows(logs.requires_grad_(), places, wanted[places]))
    return steps


@pytest.fixture
def steps() -> list[StepRows]:
    wanted = torch.randint(0, IDS, (9,), generator=torch.Generator().manual_seed(3))
    wanted[7] = -1  # cannot be drafted
    return make_steps(wanted)


def draw(steps: list[StepRows], count: int = 200) -> Paths:
    return draw_paths(steps, DOCUMENTS, FOLLOWED, count, torch.Generator().manual_seed(1))


def walk_path(steps: list[StepRows], paths: Paths, context: int, path: int) -> tuple[list[int], int | None]:
    """Places in the path that are kept, and the token in the first that is refused, by going from place to place."""
    kept: list[int] = []
    for step, rows in enumerate(steps):
        place = context + step
        at = (rows.places == place).nonzero()
        if place >= len(DOCUMENTS) or DOCUMENTS[place] != DOCUMENTS[context] or not len(at):
            return kept, None  # the answer ends
        row = int(at[0, 0])
        token = int(paths.drawn[step][0][row, path])
        if token != int(rows.wanted[row]):
            return kept, token
        kept.append(step)
        if not FOLLOWED[place]:
            return kept, None  # the document goes another way
    return kept, None


def test_paths_are_ruled_on_one_by_one(steps: list[StepRows]) -> None:
    paths = draw(steps)
    for context in range(9):
        for path in range(200):
            kept, refused = walk_path(steps, paths, context, path)
            assert paths.kept[context, :, path].nonzero()[:, 0].tolist() == kept
            assert paths.refused[context, :, path].nonzero()[:, 0].tolist() == ([] if refused is None else [len(kept)])
    assert int(paths.contexts) == 9 and {0, 1, 2} <= {*paths.lengths.flatten().tolist()}


def test_paths_are_drawn_from_the_drafter(steps: list[StepRows]) -> None:
    """The chance that a path stands so long is the product of what the drafter gives its tokens."""
    count = 40_000
    paths = draw(steps, count)
    for context in (0, 4, 6):
        chance = 1.0
        for step in range(STEPS):
            rows, place = steps[step], context + step
            at = (rows.places == place).nonzero()
            if place > 8 or DOCUMENTS[place] != DOCUMENTS[context] or not len(at):
                break
            wanted = int(rows.wanted[at[0, 0]])
            chance *= 0.0 if wanted < 0 else float(rows.logs.detach()[at[0, 0], wanted].exp())
            share = float((paths.lengths[context] > step).double().mean())
            assert share == pytest.approx(chance, abs=5 * (chance * (1 - chance) / count) ** 0.5 + 1e-9)
            if not FOLLOWED[place]:
                break


def state_loss(loss: PathLoss, steps: list[StepRows], paths: Paths) -> float:
    """The formula of `PathLoss`, in loops over contexts and paths."""
    total = 0.0
    for context in range(9):
        walks = [walk_path(steps, paths, context, path) for path in range(loss.paths)]
        weights = [exp(loss.beta * len(kept)) if kept else 0.0 for kept, _ in walks]
        ruled = sum(len(kept) + (refused is not None) for kept, refused in walks)
        share = sum(len(kept) for kept, _ in walks) / max(1, ruled)
        for weight, (kept, refused) in zip(weights, walks, strict=True):
            for step in kept:
                total -= weight / sum(weights) * look_up(steps, context, step, None)
            if refused is not None:
                wrong = look_up(steps, context, len(kept), refused)
                total += loss.rejection * share * max(wrong, log(loss.floor)) / loss.paths
                total += loss.confidence * exp(2 * wrong) / loss.paths
    return total


def look_up(steps: list[StepRows], context: int, step: int, token: int | None) -> float:
    """Log-probability of a token, None the wanted one, in a step of a context's path."""
    row = int((steps[step].places == context + step).nonzero()[0, 0])
    wanted = int(steps[step].wanted[row]) if token is None else token
    return float(steps[step].logs.detach()[row, wanted])


@pytest.mark.parametrize(
    "loss",
    [
        PathLoss(paths=12, rejection=0.0, confidence=0.0),
        PathLoss(paths=12, beta=0.3, rejection=0.7, confidence=0.0, floor=0.2),
        PathLoss(paths=12, rejection=0.2, confidence=0.9),
    ],
)
def test_the_loss_is_the_stated_one(steps: list[StepRows], loss: PathLoss) -> None:
    found = loss.measure(steps, DOCUMENTS, FOLLOWED, torch.Generator().manual_seed(1))
    paths = draw(steps, loss.paths)
    assert float(found.loss.detach()) == pytest.approx(state_loss(loss, steps, paths), rel=1e-5)
    assert int(found.places) == 9
    assert (int(found.judged), int(found.agreed)) == (int((paths.kept | paths.refused).sum()), int(paths.kept.sum()))


def test_a_refused_token_is_pushed_down_to_the_floor_and_an_accepted_one_up(steps: list[StepRows]) -> None:
    loss = PathLoss(paths=64, rejection=1.0, confidence=0.0, floor=1e-9)
    loss.measure(steps, DOCUMENTS, FOLLOWED, torch.Generator().manual_seed(1)).loss.backward()
    rows = steps[0]
    assert rows.logs.grad is not None
    right = rows.logs.grad.gather(1, rows.wanted.clamp(min=0)[:, None])[:, 0]
    assert bool((right[rows.wanted >= 0] <= 0).all()) and bool((right < 0).any())
    wrong = rows.logs.grad.scatter(1, rows.wanted.clamp(min=0)[:, None], 0)[rows.wanted >= 0]
    assert bool((wrong >= 0).all()) and bool((wrong > 0).any())  # steps against the gradient make it less likely
    # with a floor that all refused tokens lie below, nothing of them moves
    for one in steps:
        one.logs.grad = None
    still = PathLoss(paths=64, rejection=1.0, confidence=0.0, floor=0.999999)
    plain = PathLoss(paths=64, rejection=0.0, confidence=0.0)
    grads = []
    for one in (still, plain):
        one.measure(steps, DOCUMENTS, FOLLOWED, torch.Generator().manual_seed(1)).loss.backward()
        grads.append(steps[0].logs.grad.clone())  # type: ignore[union-attr]
        for rows in steps:
            rows.logs.grad = None
    assert torch.allclose(*grads)


def test_columns_of_ids_that_can_be_drafted() -> None:
    wanted = torch.tensor([5, 2, 7])
    assert find_columns(wanted, None, 8).tolist() == [5, 2, 7]
    assert find_columns(wanted, torch.tensor([2, 7]), 8).tolist() == [-1, 0, 1]


# --- recipes ------------------------------------------------------------------------------------------------------


def make_batch(model: Any, taps: tuple[int, ...] = ()) -> Batch:
    """Two documents whose answers the model wrote itself, greedily."""
    from baselines.eagle.features import read_target

    ids = torch.tensor([[3, 5, 9, 1], [7, 7, 2, 4]])
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    features, states = read_target(model, ids, taps)
    return Batch(ids, features, states, torch.tensor([4, 4]), torch.tensor([16, 14]), seed=5)


@pytest.fixture
def model(tiny: ModelFactory) -> Any:
    return tiny("llama", layers=4, seed=3)


def test_paths_of_a_head_are_those_it_would_draft(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands at step k of a context's path is what the unrolled head says there, of the token that comes there."""
    source, recipe = Source.of(model), Eagle3Recipe(steps=3, draft_vocabulary=None, paths=PathLoss(paths=5))
    torch.manual_seed(0)
    head = recipe.make(source, choose_ids(torch.arange(source.vocabulary), None)).double()
    batch = make_batch(model, recipe.taps(4))
    seen: list[Any] = []
    monkeypatch.setattr(recipes, "measure_paths", lambda *arguments: seen.extend(arguments) or [])
    plain = recipe.measure(head, batch, source)
    _, steps, answers, wanted, _ = seen
    window = Window.of(batch, 3)
    outputs, checked = unroll(head, batch, source.embed, 3, window), 0
    for context in range(len(wanted)):
        document, place = int(answers.documents[context]), int(answers.places[context])
        for step in range(3):
            if place + step >= int(batch.stops[document]) - 1:
                continue
            index = place - 1 - int(window.index[document, 0])  # of the pair before the first token of the path
            own = head.logits(outputs[step][document, index][None], source.head).log_softmax(-1)[0]
            row = int((steps[step].places == context + step).nonzero()[0, 0])
            assert torch.allclose(own.float(), steps[step].logs[row])
            assert int(steps[step].wanted[row]) == int(batch.ids[document, place + step + 1])
            checked += 1
    assert checked == 3 * 22 - 2 * 3
    monkeypatch.undo()
    sums = recipe.measure(head, batch, source)
    assert len(sums) == len(recipe.weights) == 4 and recipe.weights[-1] == 1.0
    assert all(torch.equal(one.loss, other.loss) for one, other in zip(sums, plain, strict=False))
    assert int(sums[-1].places) == 12 + 10  # a path begins at every answer token
    assert torch.equal(sums[-1].loss, recipe.measure(head, batch, source)[-1].loss)  # drawn by the batch's seed


@pytest.mark.parametrize("count", [1, 2, 3])
def test_answers_shorter_than_a_path(count: int) -> None:
    wanted = torch.zeros(count, dtype=torch.long)
    documents, followed = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool)
    logs = torch.tensor([0.0, -50.0]).expand(count, 2)
    steps = [StepRows(logs[k:], torch.arange(count)[k:], wanted[k:]) for k in range(5)]
    paths = draw_paths(steps, documents, followed, 4, torch.Generator().manual_seed(0))
    assert paths.lengths.tolist() == [[count - place] * 4 for place in range(count)]


def test_a_draft_model_learns_from_rows_and_paths(model: Any, tiny: ModelFactory) -> None:
    source, batch = Source.of(model), make_batch(model)
    draft = copy.deepcopy(tiny("llama", layers=1, seed=9)).requires_grad_(True)
    recipe = DraftModelRecipe(steps=3, paths=PathLoss(paths=8, rejection=0.0, confidence=0.0))
    plain, paths = recipe.measure(draft, batch, source)
    answers = Answers.of(batch)
    with torch.no_grad():
        drafted = draft(input_ids=batch.ids).logits[answers.documents, answers.places]
        rows = model(input_ids=batch.ids).logits[answers.documents, answers.places].float().softmax(-1)
    stated = -(rows * drafted.float().log_softmax(-1)).sum()
    assert float(plain.loss.detach()) == pytest.approx(float(stated), rel=1e-5)
    assert int(plain.places) == int(paths.places) == 22
    trainer = Trainer(draft, recipe, source, OptimizerSpec(rate=3e-2), 40, lambda tensor: tensor)
    seen = [trainer.update(batch).agreements[-1] for _ in range(40)]
    assert sum(seen[-5:]) / 5 > sum(seen[:5]) / 5 + 0.3  # of the ruled tokens of its paths, the kept ones


def test_a_draft_model_with_fewer_ids(model: Any, tiny: ModelFactory) -> None:
    source, batch = Source.of(model), make_batch(model)
    draft = tiny("llama", layers=1, seed=9, vocab_size=source.vocabulary // 2)
    plain, paths = DraftModelRecipe(steps=3, paths=PathLoss(paths=8)).measure(draft, batch, source)
    answers = Answers.of(batch)
    wanted = batch.ids[answers.documents, answers.places + 1]
    assert int(plain.places) == int((wanted < source.vocabulary // 2).sum()) < 22
    assert int(plain.judged) == int(paths.places) == 22
