"""The library's own loops as external controls: `generate`, assisted generation and prompt lookup of transformers.

They run on the modules that the engine loaded, so that weights, dtype and threads are those of every other arm. Where
the engine runs fused forwards, their joined weights have replaced those of the modules, which keep slices of them
(`viasd.forward.join`): the modules compute what they did before, from the same memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field

from baselines.heard import Heard
from viasd.decode import Decode, Generation, Memory, Watch
from viasd.models import PairError
from viasd.sampling import Draws, Sampling
from viasd.spec import spec

if TYPE_CHECKING:
    from viasd.engine import Engine


@spec
class AssistantModel:
    """Assisted generation: a model of the pair drafts (`assistant_model` of transformers' `generate`).

    `num_assistant_tokens` is the longest draft; `schedule` says how it moves: `constant`, or two more after a draft
    kept whole and one less otherwise, kept across prompts (`heuristic`) or begun anew (`heuristic_transient`). A draft
    also ends behind a token whose probability is below `assistant_confidence_threshold` (0: never). The defaults are
    the library's own (`GenerationConfig._get_default_generation_params`, 5.17 and 5.23).

    Traps, measured with both versions: (1) with a threshold and with scikit-learn installed the library moves the
    threshold during a request, so that draft lengths depend on what else is installed. (2) Above temperature 0 it
    processes draft rows twice (temperature, top-k, top-p, min-p, and all of them again): exact, since the rows that it
    stores are those it drew from, but the drafts come from a sharper or flatter law than asked for, and fewer are kept.
    """

    role: Annotated[str, Field(min_length=1)] = "draft"
    num_assistant_tokens: Annotated[int, Field(ge=1, le=64)] = 20
    schedule: Literal["constant", "heuristic", "heuristic_transient"] = "constant"
    assistant_confidence_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.4

    @property
    def roles(self) -> frozenset[str]:
        return frozenset({self.role})

    @property
    def optional_packages(self) -> tuple[str, ...]:
        """Packages that change what the library does where they are installed."""
        return ("scikit-learn",) if self.assistant_confidence_threshold > 0 else ()


@spec
class PromptLookup:
    """Assisted generation without a model: what followed the last n-gram earlier in the text is the draft.

    The library judges such drafts by sample-and-match, which is exact but keeps fewer tokens than rejection sampling
    (reference: baselines, section 2). n is at most `max_matching_ngram_size`. Defaults: the library's n, the class's
    draft length (`PromptLookupCandidateGenerator`).
    """

    prompt_lookup_num_tokens: Annotated[int, Field(ge=1, le=64)] = 10
    max_matching_ngram_size: Annotated[int, Field(ge=1)] = 2

    @property
    def roles(self) -> frozenset[str]:
        return frozenset()


@spec
class LibraryMethod:
    """A method that is a loop of transformers; it has no drafter, stop rule or verifier of this project."""

    name: Annotated[str, Field(min_length=1)]
    assistant: AssistantModel | PromptLookup | None = None

    @property
    def roles(self) -> frozenset[str]:
        """Models of the pair that this method runs."""
        return frozenset({"target"}) | (frozenset() if self.assistant is None else self.assistant.roles)

    @property
    def optional_packages(self) -> tuple[str, ...]:
        """Packages that change what the library does where they are installed."""
        return self.assistant.optional_packages if isinstance(self.assistant, AssistantModel) else ()

    def open(self, engine: Engine) -> LibraryLoop:
        """The decoder. Raises PairError for models that the library does not take together."""
        if isinstance(self.assistant, AssistantModel):
            check_sizes(engine.model("target"), engine.model(self.assistant.role), self.assistant.role)
        return LibraryLoop(engine, self.assistant)


class LibraryLoop:
    """`generate` of transformers as a decoder. It is lossless, as far as the library is.

    Its prefill cannot be told apart from its first token: the clock of decoding starts when the first tokens are
    output, and those are not counted under it (`Generation.unclocked`). With `detail`, hooks on the models tell what
    was drafted, so that rounds and calls are counted as those of other decoders; laws are never known.
    """

    lossless = True

    def __init__(self, engine: Engine, assistant: AssistantModel | PromptLookup | None = None) -> None:
        self._target: Any = engine.model("target")
        self._draft: Any = None
        self._models = {"target": self._target}  # by role
        self._assistant = assistant
        self._length = assistant.num_assistant_tokens if isinstance(assistant, AssistantModel) else 0
        if isinstance(assistant, AssistantModel):
            self._draft = self._models[assistant.role] = engine.model(assistant.role)
        # Ids that the tokenizer does not define are no tokens, as everywhere in this project.
        self._undefined = list(range(engine.vocabulary, vocabulary_size(self._target)))

    @torch.inference_mode()  # as ours: what is compared are loops
    def generate(
        self, prompt_ids: Sequence[int], decode: Decode, draws: Draws, detail: bool = False, watch: Watch | None = None
    ) -> Generation:
        """Continue a prompt. `watch` hears of the first tokens, then that the clock may start, then of each round."""
        target = self._target
        heard = Heard(prompt_ids, decode, draws, watch, streamed=self._assistant is not None)
        ids = torch.tensor([list(prompt_ids)], device=target.device)
        with ExitStack() as stack:
            if detail:
                stack.enter_context(heard.listen(self._models))
            stack.enter_context(torch.random.fork_rng([target.device] if target.device.type == "cuda" else []))
            if decode.sampling.temperature > 0:
                torch.manual_seed(draws.seed())
            target.generate(ids, **self._arguments(decode, heard), attention_mask=torch.ones_like(ids))
        if isinstance(self._assistant, AssistantModel) and self._assistant.schedule == "heuristic":
            self._length = int(self._draft.generation_config.num_assistant_tokens)
        return heard.generation(detail)

    def _arguments(self, decode: Decode, heard: Heard) -> dict[str, Any]:
        """What the library's call is given, beside the prompt. The models' own settings are emptied before it.

        They would fill whatever a call leaves open: end marks, penalties, schedules.
        """
        from transformers import GenerationConfig

        eos = sorted(decode.eos_ids) or None
        self._target.generation_config = GenerationConfig()
        settings = {
            "max_new_tokens": decode.max_new_tokens,
            "eos_token_id": eos,
            "pad_token_id": eos[0] if eos else None,
            "suppress_tokens": self._undefined or None,
            **sampling_settings(decode.sampling),
        }
        told: dict[str, Any] = {"stopping_criteria": [heard]}
        if self._assistant is not None:
            told["streamer"] = heard
        if isinstance(self._assistant, PromptLookup):
            settings |= dataclasses.asdict(self._assistant)
        if isinstance(self._assistant, AssistantModel):
            told["assistant_model"] = self._draft
            self._draft.generation_config = GenerationConfig(
                num_assistant_tokens=self._length,
                num_assistant_tokens_schedule=self._assistant.schedule,
                assistant_confidence_threshold=self._assistant.assistant_confidence_threshold,
            )
        return {**told, "generation_config": GenerationConfig(**settings)}

    def adaptive(self) -> None:
        """The library's own numbers are not looked at."""

    def memory(self) -> Memory:
        """The draft length, where the library keeps it across prompts (schedule heuristic)."""
        lasting = isinstance(self._assistant, AssistantModel) and self._assistant.schedule == "heuristic"
        return {"num_assistant_tokens": self._length} if lasting else {}

    def restore(self, memory: Memory) -> None:
        """Put back what `memory` gave."""
        if isinstance(self._assistant, AssistantModel):
            self._length = memory.get("num_assistant_tokens", self._assistant.num_assistant_tokens)


def check_sizes(target: Any, draft: Any, role: str) -> None:
    """Raises PairError for two models of different size: the library takes them for different tokenizers.

    With tokenizers that differ it goes through text, which is exact for greedy decoding alone: that is no control.
    """
    ours, theirs = vocabulary_size(target), vocabulary_size(draft)
    if ours != theirs:
        raise PairError(
            f"assisted generation of transformers needs models of equally many ids; target has {ours}, "
            f"{role} {theirs}; accepted: other arms (hf_generate, sd), or a pair whose vocab_size agrees"
        )


def vocabulary_size(model: Any) -> int:
    """How many ids a model's configuration names."""
    return int(model.config.get_text_config().vocab_size)


def sampling_settings(sampling: Sampling) -> dict[str, Any]:
    """The library's names for how rows are processed; it does so in the same order.

    Raises ValueError for a setting that it has no name for here.
    """
    if sampling.temperature == 0:
        return {"do_sample": False}
    known = ("temperature", "top_k", "top_p", "min_p")
    for one in dataclasses.fields(sampling):
        if one.name not in known and getattr(sampling, one.name) != one.default:
            value = getattr(sampling, one.name)
            raise ValueError(f"decode.{one.name}={value}: arms of the library accept {', '.join(known)} alone")
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,  # 0 is off there, too; left out it would be 50
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }
