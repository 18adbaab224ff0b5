"""Tokenizers to which a scorer adds tokens of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.errors import MissingError
from bench.weights.frozen import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence


def extended_tokenizer(source: str, added: Sequence[str], vocabulary: int, owner: str, usual: str):
    """The tokenizer of `source` with the tokens `added`, for `owner`'s model with `vocabulary` token embeddings.

    Raises MissingError, naming the `usual` tokenizer, if files are missing or the number of tokens is another.
    """
    tokenizer = load_tokenizer(source)
    tokenizer.add_tokens(list(added), special_tokens=True)
    if len(tokenizer) != vocabulary:
        raise MissingError(
            f"the tokenizer {source!r} is not {owner}'s: with {' and '.join(added)} it has {len(tokenizer)} tokens, "
            f"not {vocabulary}; use {usual}"
        )
    return tokenizer
