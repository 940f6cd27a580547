"""What the reference pair is trained on: the task families, their mix, a tokenizer, and packed batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.tasks.base import NAMES, Author, Example, Task
from experiments.tasks.coding import Coding
from experiments.tasks.qa import FINAL, RELATIONS, Fact, Qa, add_distractors, draw_chain, draw_object
from experiments.tasks.reasoning import Reasoning
from experiments.tasks.summarization import Summarization
from experiments.tasks.translation import Translation

TASKS: tuple[Task, ...] = (Reasoning(), Qa(), Coding(), Summarization(), Translation())
MIX = {  # weights of the draw
    "reasoning": 1.5,
    "qa": 2.2,
    "coding": 0.9,
    "summarization": 1.6,
    "translation": 0.8,
    "recitation": 0.4,
    "drill": 0.6,
}
# To bind a fact to its person is what a small model learns last, and never beside everything else: for a part of the
# run most documents are drills.
DRILL, DRILLED = 12.0, (0.4, 0.5)  # weight of the drill in that part, where it begins and ends
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
VOCABULARY = 1280
POOL = 80_000  # training problems per family
ROWS, LENGTH = 24, 256  # tokens of one step
JUDGED = 4096  # places for the completion tokens of one step, which are fewer
IGNORED = -100
Document = tuple[list[int], int]  # ids with marks, length of the prompt
Batch = dict[str, Tensor]


def train_tokenizer(corpus: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose digits stay single, with a begin mark put in front of every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
        ),
    )
    marks = [(BOS, core.token_to_id(BOS))]
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def encode(examples: Sequence[Example], tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """Return the ids of prompt, completion and end mark, and the length of the prompt, of each example."""
    prompts = tokenizer([e.prompt for e in examples])["input_ids"]
    completions = tokenizer([e.reference for e in examples], add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    return [(p + c + end, len(p)) for p, c in zip(prompts, completions, strict=True)]


def recite(number: int, author: Author, told: list[Fact]) -> Example:
    """A passage, and its facts in canonical words and another order."""
    said = " ".join(author.template(RELATIONS[f.noun].facts).format(who=f.who, what=f.what) for f in told)
    author.shuffle(told)
    return Example(str(number), f"Text: {said}\nFacts:", "".join(f" {fact}." for fact in told), {})


def drill(number: int) -> Example:
    """The easiest problem of finding: six people with one fact each, all to be told again."""
    author = Author(f"drill:{number}", 3)
    people = author.entities(NAMES, 6)
    relations = [author.choice(FINAL) for _ in people]
    told = [Fact(r.noun, who, draw_object(author, r, ())) for r, who in zip(relations, people, strict=True)]
    return recite(number, author, told)


def recitation(number: int) -> Example:
    """A passage of the qa family, all of it to be told again."""
    author = Author(f"recitation:{number}", 3)
    return recite(number, author, add_distractors(author, *draw_chain(author, 3)))


def training_pools() -> dict[str, list[Example]]:
    """The training problems of each family, and what teaches to find."""
    return {task.name: task.examples("train", POOL) for task in TASKS} | {
        "recitation": [recitation(number) for number in range(POOL)],
        "drill": [drill(number) for number in range(POOL)],
    }


def draw_documents(pools: dict[str, list[Document]], rng: random.Random, progress: float) -> list[Document]:
    """Draw documents by the mix at this part (0 to 1) of a run until they would fill a batch."""
    first, last = DRILLED
    mix = MIX | ({"drill": DRILL} if first <= progress < last else {})
    drawn: list[Document] = []
    expected = 0
    while expected <= ROWS * LENGTH:
        family = rng.choices(list(mix), list(mix.values()))[0]
        drawn.append(rng.choice(pools[family]))
        expected += len(drawn[-1][0])
    return drawn


def pack(drawn: list[Document]) -> Batch:
    """Lay documents into ROWS x LENGTH tokens, longest first, each where it fits first; what fits nowhere is left out.

    Returns [rows, length] each: `ids`, `targets` (the next token of a completion, else IGNORED), `owner` (number of
    the document, so that none sees another one) and `positions` in the document.
    """
    ids_, targets = torch.zeros(ROWS, LENGTH, dtype=torch.long), torch.full((ROWS, LENGTH), IGNORED)
    owner, positions = torch.arange(LENGTH).neg().repeat(ROWS, 1) - 1, torch.zeros(ROWS, LENGTH, dtype=torch.long)
    used = [0] * ROWS
    for number, (ids, prompt) in enumerate(sorted(drawn, key=lambda d: -len(d[0])), start=1):
        row = next((r for r in range(ROWS) if used[r] + len(ids) <= LENGTH), None)
        if row is None:
            continue
        start, end = used[row], used[row] + len(ids)
        used[row] = end
        ids_[row, start:end] = torch.tensor(ids)
        targets[row, start + prompt - 1 : end - 1] = torch.tensor(ids[prompt:])
        owner[row, start:end], positions[row, start:end] = number, torch.arange(len(ids))
    return {"ids": ids_, "targets": targets, "owner": owner, "positions": positions}


@torch.inference_mode()
def greedy_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], limit: int
) -> list[str]:
    """Greedy answers of at most `limit` tokens, all prompts in one left-padded batch (off any clock)."""
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device)
    written = model.generate(**inputs, max_new_tokens=limit, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(written, skip_special_tokens=True)


def mean_quality(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, examples: Sequence[Example]
) -> float:
    """Mean quality of a model's greedy answers."""
    texts = greedy_answers(model, tokenizer, [e.prompt for e in examples], task.max_new_tokens)
    return sum(task.score(e, text) for e, text in zip(examples, texts, strict=True)) / len(examples)
