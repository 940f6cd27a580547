"""How far the tokenizers of a pair name the same tokens by the same ids."""

from __future__ import annotations

from dataclasses import dataclass

from viasd.models import Pair, load_tokenizer

EXAMPLES = 5  # tokens that are named of each kind


@dataclass(frozen=True)
class Alignment:
    """One tokenizer beside the target's, in tokens. Examples are the first few by id."""

    size: int  # tokens it defines
    shared: int  # tokens both define under the same id
    missing: int  # tokens of the target it lacks
    extra: int  # tokens the target lacks
    differing: int  # its tokens that have another id in the target, or whose id names another token there
    examples: dict[str, list[str]]  # of missing, extra and differing ones


def align(pair: Pair) -> dict[str, Alignment]:
    """The tokenizer of every role beside the target's."""
    target = load_tokenizer(pair).get_vocab()
    return {
        role: compare_vocabularies(target, target if role == "target" else load_tokenizer(pair, role).get_vocab())
        for role in sorted(pair.models, key=lambda role: (role != "target", role))
    }


def compare_vocabularies(target: dict[str, int], other: dict[str, int]) -> Alignment:
    """Two tokenizers as dictionaries of token -> id."""
    named = {index: token for token, index in target.items()}
    kinds = {
        "missing": [token for token in target if token not in other],
        "extra": [token for token in other if token not in target],
        "differing": [
            token
            for token, index in other.items()
            if target.get(token, index) != index or named.get(index, token) != token
        ],
    }
    ids = {**other, **target}
    return Alignment(
        size=len(other),
        shared=sum(target.get(token) == index for token, index in other.items()),
        missing=len(kinds["missing"]),
        extra=len(kinds["extra"]),
        differing=len(kinds["differing"]),
        examples={
            kind: sorted(tokens, key=lambda token: ids[token])[:EXAMPLES] for kind, tokens in kinds.items() if tokens
        },
    )
