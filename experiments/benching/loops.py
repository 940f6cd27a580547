"""The decode loops of this project and of the library, measured side by side on the same models and prompts.

The library runs on its own modules, in the models that the engine loaded. Where the engine runs fused forwards, their
joined weights have replaced those of the modules, which keep slices of them (`viasd.forward.join`): the modules compute
what they did before, from the same memory, so that no second copy of the models is needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from experiments.benching.setup import TWINS, BenchPlan
from experiments.costs import calibrate
from experiments.measure import Bench, Prompt
from experiments.records import Row
from viasd.decode import Decode, Decoder, Generation, Memory, Speculative, Watch
from viasd.engine import Engine
from viasd.sampling import Draws, Sampling, SeededDraws


class LibraryLoop:
    """The library's greedy `generate` on the models of an engine, as a decoder that a bench can measure.

    With `draft_length` it is assisted generation, in which the draft model always drafts that many tokens. Nothing
    ends an output early. Its prefill cannot be told apart: all of it counts as decoding.
    """

    lossless = True

    def __init__(self, engine: Engine, draft_length: int | None = None) -> None:
        from transformers import GenerationConfig

        # What a model's own settings say would fill whatever a call leaves open: end marks, penalties, schedules.
        self._target = engine.model("target")
        self._target.generation_config = GenerationConfig()
        self._draft = None
        if draft_length is not None:
            self._draft = engine.model("draft")
            self._draft.generation_config = GenerationConfig(
                num_assistant_tokens=draft_length,
                num_assistant_tokens_schedule="constant",
                assistant_confidence_threshold=0.0,  # no draft ends because the draft model is unsure
            )

    @torch.inference_mode()  # as ours: what is compared are loops
    def generate(
        self, prompt_ids: Sequence[int], decode: Decode, draws: Draws, detail: bool = False, watch: Watch | None = None
    ) -> Generation:
        """Continue a prompt by exactly `decode.max_new_tokens`."""
        if watch is not None:
            watch("prefilled")
        ids = torch.tensor([list(prompt_ids)], device=self._target.device)
        found = self._target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=decode.max_new_tokens,
            do_sample=False,
            assistant_model=self._draft,
        )
        output = found[0, len(prompt_ids) :].tolist()
        if watch is not None:
            watch("round")
        return Generation(output, "length", rounds=[], calls={}, fed={}, laws=None)

    def adaptive(self) -> None:
        """Nothing is looked at."""

    def memory(self) -> Memory:
        """Nothing outlives a request: the schedule is constant."""
        return {}

    def restore(self, memory: Memory) -> None:
        """Nothing to put back."""


class LoopBench(Bench):
    """A bench whose arms may be the library's loops: into these nothing looks."""

    def _detail(self, row: Row, prompt: Prompt, timed: bool) -> None:
        if isinstance(self.arms[row.arm], LibraryLoop):
            row.memory = self._memory[row.arm, row.index + 1] = {}
        else:
            super()._detail(row, prompt, timed)


def open_twins(engine: Engine, draft_length: int | None) -> dict[str, LibraryLoop]:
    """The library's loops; assisted generation where there is a draft model."""
    twins = {TWINS["vanilla"]: LibraryLoop(engine)}
    return twins if draft_length is None else {**twins, TWINS["sd"]: LibraryLoop(engine, draft_length)}


def measure_loops(
    plan: BenchPlan, engine: Engine, decoders: Mapping[str, Speculative], tick: Callable[[], object]
) -> list[Row]:
    """Rows of every prompt in every loop, all repeats interleaved. `tick` is called per prompt.

    Isolated costs of calls are measured anew before every prompt: a shared machine is twice as fast in one minute as in
    another, and what a loop is compared with has to be of the same one.
    """
    settings = plan.job.settings
    arms: dict[str, Any] = {**decoders, **open_twins(engine, plan.job.draft_length)}
    decode = Decode(Sampling(), settings.new_tokens)
    rows: list[Row] = []
    for name, prompts in plan.prompts.items():
        task = plan.job.jobs[name].task
        bench = LoopBench(engine, arms, task, plan.tokenizer, decode, settings.seed, settings.repeats)
        bench.warm_up(prompts[0].ids)
        for prompt in prompts:
            with TemporaryDirectory() as folder:
                bench.costs = calibrate(engine, decoders, plan.identity, Path(folder))
            rows += bench.measure(prompt, timed=True)
            tick()
    return rows


def at_median(row: Row) -> Row:
    """The row as if each of its repeats had taken their median."""
    fields = ("decode_seconds", "prefill_seconds", "first_token_seconds")
    seconds: dict[str, Any] = {name: [median(values)] for name in fields if (values := getattr(row, name))}
    return dataclasses.replace(row, **seconds)


def same_outputs(rows: Sequence[Row], one: str, other: str) -> list[bool]:
    """Of every prompt that both loops continued: whether by the same ids."""
    outputs = {(row.example_id, row.arm): row.token_ids for row in rows if row.error is None}
    own = [(example_id, ids) for (example_id, arm), ids in outputs.items() if arm == one]
    return [ids == outputs[example_id, other] for example_id, ids in own if (example_id, other) in outputs]


def compare_exactly(plan: BenchPlan, loops: Sequence[str], tick: Callable[[], object]) -> dict[str, list[bool]]:
    """The same in float64, where rounding decides nothing, for the first prompts of each task: by our loop."""
    same: dict[str, list[bool]] = {name: [] for name in loops}
    if not plan.exact_prompts:
        return same
    methods = {name: plan.job.arms[name] for name in loops}
    engine = plan.open_engine({role for method in methods.values() for role in method.roles}, "float64")
    twins = open_twins(engine, plan.job.draft_length if "sd" in loops else None)
    opened: dict[str, Decoder] = {name: method.open(engine) for name, method in methods.items()}
    decode = Decode(Sampling(), plan.job.settings.new_tokens)
    for prompt in plan.exact_prompts:
        draws = SeededDraws(plan.job.settings.seed, prompt.example.example_id, engine.device)
        for name, decoder in opened.items():
            ours, theirs = (loop.generate(prompt.ids, decode, draws) for loop in (decoder, twins[TWINS[name]]))
            same[name].append(ours.token_ids == theirs.token_ids)
        tick()
    return same
