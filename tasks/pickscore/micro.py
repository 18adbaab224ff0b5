"""Preference prompts and text tokens of the micro world."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.backbones.micro.captions import Brief, caption, draw_brief
from bench.backbones.micro.files import WEIGHTS
from bench.backbones.micro.tokens import MAX_TOKENS, PAD, Tokenizer
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

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
