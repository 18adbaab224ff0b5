"""The micro world's tokenizer: words are tokens, and inside quotes characters are."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from bench.backbones.micro.captions import vocabulary
from bench.backbones.micro.world import SHAPES
from bench.errors import UsageError
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MAX_TOKENS = 15
PAD = 0


class Tokenizer:
    """Maps prompts to token ids and rejects words that are not in the vocabulary of a world with these shapes."""

    def __init__(self, shapes: tuple[str, ...] = SHAPES) -> None:
        self.ids = {token: i + 1 for i, token in enumerate(vocabulary(shapes))}
        self.size = len(self.ids) + 1

    def __call__(self, prompts: list[str]) -> Tensor:
        """Prompts -> ids [B, MAX_TOKENS], padded with PAD; the empty prompt is all padding.

        Raises UsageError for a word outside the vocabulary or a prompt that is too long.
        """
        ids = torch.full((len(prompts), MAX_TOKENS), PAD)
        for row, prompt in enumerate(prompts):
            found = self.ids_of(prompt)
            ids[row, : len(found)] = torch.tensor(found, dtype=torch.long)
        return ids

    def ids_of(self, prompt: str) -> list[int]:
        """The ids of a prompt's tokens, without padding. Raises UsageError as calling does."""
        tokens = list(self._split(prompt))
        if len(tokens) > MAX_TOKENS:
            raise UsageError(
                f"prompt has {len(tokens)} tokens, but the micro world allows {MAX_TOKENS}: shorten {prompt!r}"
            )
        return [self._id(token, prompt) for token in tokens]

    @staticmethod
    def _split(prompt: str):
        for i, part in enumerate(prompt.split('"')):
            if i % 2:  # inside quotes
                yield '"'
                yield from (f'"{char}' for char in part)
            else:
                yield from re.findall(r"[^\s,.]+", part.lower())

    def _id(self, token: str, prompt: str) -> int:
        if token not in self.ids:
            near = get_close_matches(token, self.ids, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{token!r} is not in the micro world's vocabulary (in prompt {prompt!r}){hint}")
        return self.ids[token]
