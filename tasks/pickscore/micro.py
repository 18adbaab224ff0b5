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
    """Text inputs of a CLIPModel, each [B, MAX_TOKENS + 1]: word ids, an end token, padding."""
    ids = torch.nn.functional.pad(_TOKENIZER(texts), (0, 1), value=PAD)
    lengths = (ids != PAD).sum(1)
    # The end token, from which CLIP pools, comes right after the last word and is attended to.
    mask = torch.arange(MAX_TOKENS + 1) <= lengths[:, None]
    ids[torch.arange(len(ids)), lengths] = END
    return {"input_ids": ids, "attention_mask": mask.long()}


def briefs(sizes: dict[str, int]) -> dict[str, list[Brief]]:
    """Briefs of two or three objects for each split, all with different captions.

    Briefs of one object are excluded. They have only 48 captions, which would all be in one split, so that the test
    prompts would not resemble the training prompts.
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
    """Raise UsageError for words outside the world's vocabulary, and for a record without valid `wanted` pairs."""
    _TOKENIZER([prompt.text])
    form = "a list of [shape, colour], one for each object in the prompt"
    if "wanted" not in prompt.metadata:
        raise UsageError(f"the record has no 'wanted': {form}")
    wanted = prompt.metadata["wanted"]
    if not isinstance(wanted, list) or not wanted:
        raise UsageError(f"wanted should be {form}, not {wanted!r:.60}")
    for place, pair in enumerate(wanted):
        two = isinstance(pair, list | tuple) and len(pair) == 2
        if not two or not all(isinstance(word, str) for word in pair):
            raise UsageError(f"wanted[{place}] should be [shape, colour], not {pair!r:.60}")
        for kind, word, known in zip(("shape", "colour"), pair, (SHAPES, COLOURS), strict=True):
            if word not in known:
                raise unknown(f"{kind} in wanted[{place}]:", word, known)
