"""Preference prompts and text tokens of the micro world."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.backbones.micro.captions import Brief, caption, draw_brief
from bench.backbones.micro.files import WEIGHTS
from bench.backbones.micro.tokens import MAX_TOKENS, PAD, Tokenizer
from bench.backbones.micro.world import COLOURS, SHAPES
from bench.errors import UsageError, unknown
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api.task import Prompt

FOLDER: Path = WEIGHTS / "preference"
_TOKENIZER = Tokenizer()
END = _TOKENIZER.size


def tokenise(texts: list[str]) -> dict[str, Tensor]:
    """CLIPModel text inputs: word ids, an end token, padding, [B, MAX_TOKENS + 1]."""
    ids = torch.nn.functional.pad(_TOKENIZER(texts), (0, 1), value=PAD)
    lengths = (ids != PAD).sum(1)
    mask = torch.arange(MAX_TOKENS + 1) <= lengths[:, None]
    ids[torch.arange(len(ids)), lengths] = END
    return {"input_ids": ids, "attention_mask": mask.long()}


def briefs(sizes: dict[str, int]) -> dict[str, list[Brief]]:
    """Distinct briefs of two or three things for each split; no two captions are equal.

    One thing has only 48 captions: whichever split holds them, no other has their like, and then a test is not a test
    of what was trained.
    """
    rng = np.random.default_rng(11)
    unique: dict[str, Brief] = {}
    while len(unique) < sum(sizes.values()):
        brief = draw_brief(rng, "illustration")
        if len(brief.shapes) > 1:
            unique.setdefault(caption(brief), brief)
    rest = iter(unique.values())
    return {split: [next(rest) for _ in range(size)] for split, size in sizes.items()}


def pairs(brief: Brief) -> list[tuple[str, str]]:
    """The (shape, colour) pairs that a brief asks for."""
    return list(zip(brief.shapes, brief.colours, strict=True))


def check_prompt(prompt: Prompt) -> None:
    """Raise UsageError for words that the world does not know, and for a record without the pairs asked for."""
    _TOKENIZER([prompt.text])
    form = "a list of [shape, colour], one of each thing that the prompt asks for"
    if "wanted" not in prompt.metadata:
        raise UsageError(f"the record has no 'wanted': {form}")
    wanted = prompt.metadata["wanted"]
    if not isinstance(wanted, list) or not wanted:
        raise UsageError(f"wanted should be {form}, not {wanted!r:.60}")
    for place, pair in enumerate(wanted):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(word, str) for word in pair):
            raise UsageError(f"wanted[{place}] should be [shape, colour], not {pair!r:.60}")
        for kind, word, known in zip(("shape", "colour"), pair, (SHAPES, COLOURS), strict=True):
            if word not in known:
                raise unknown(f"{kind} in wanted[{place}]:", word, known)
