"""Preference prompts and text tokens of a drawn world."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bench.backbones.micro.captions import Brief, caption, draw_brief
from bench.backbones.micro.tokens import MAX_TOKENS, PAD, Tokenizer
from bench.backbones.micro.world import COLOURS
from bench.backbones.micro.worlds import DrawnWorld
from bench.errors import UsageError, unknown
from bench.lazy import torch
from tasks.geneval.drawn import drawn_splits

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api.task import Prompt

SEED = 11
"""Seed of micro's prompts; see DrawnWorld.seed_of."""


@cache
def tokenizer(shapes: tuple[str, ...]) -> Tokenizer:
    """The tokenizer of a world with these shapes. Its size is the id of the end token that CLIP needs."""
    return Tokenizer(shapes)


def tokenise(shapes: tuple[str, ...], texts: list[str]) -> dict[str, Tensor]:
    """Text inputs of a CLIPModel, each [B, MAX_TOKENS + 1]: word ids, an end token, padding."""
    words = tokenizer(shapes)
    ids = torch.nn.functional.pad(words(texts), (0, 1), value=PAD)
    lengths = (ids != PAD).sum(1)
    # The end token, from which CLIP pools, comes right after the last word and is attended to.
    mask = torch.arange(MAX_TOKENS + 1) <= lengths[:, None]
    ids[torch.arange(len(ids)), lengths] = words.size
    return {"input_ids": ids, "attention_mask": mask.long()}


def briefs(world: DrawnWorld, sizes: dict[str, int]) -> dict[str, list[Brief]]:
    """Briefs of two or three objects for each split, all with different captions or, by the world, meanings.

    In worlds whose splits have no meaning in common, none asks for the objects of a GenEval prompt either: one task
    would train on what the other one holds out.

    Briefs of one object are excluded. They have only 48 captions on micro, which would all be in one split, so that the
    test prompts would not resemble the training prompts.
    """
    rng = np.random.default_rng(world.seed_of(SEED))
    sizes = world.sizes(sizes)
    elsewhere = _of_geneval(world) if world.by_meaning else set()
    unique: dict[str, Brief] = {}
    while len(unique) < sum(sizes.values()):
        brief = draw_brief(rng, "illustration", world.shapes)
        meaning = tuple(sorted(pairs(brief)))
        if len(brief.shapes) > 1 and meaning not in elsewhere:
            unique.setdefault(repr(meaning) if world.by_meaning else caption(brief), brief)
    rest = iter(unique.values())
    return {split: [next(rest) for _ in range(size)] for split, size in sizes.items()}


def _of_geneval(world: DrawnWorld) -> set[tuple[tuple[str, str], ...]]:
    """The (shape, colour) pairs of every GenEval prompt that names two coloured objects, of all splits."""
    splits = drawn_splits(world).values()
    coloured = (record["include"] for records in splits for record in records if record["tag"] == "color_attr")
    return {tuple(sorted((part["class"], part["color"]) for part in parts)) for parts in coloured}


def pairs(brief: Brief) -> list[tuple[str, str]]:
    """The (shape, colour) pairs that a brief asks for."""
    return list(zip(brief.shapes, brief.colours, strict=True))


def check_prompt(prompt: Prompt, shapes: tuple[str, ...]) -> None:
    """Raise UsageError for words outside the world's vocabulary, and for a record without valid `wanted` pairs."""
    tokenizer(shapes)([prompt.text])
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
        for kind, word, known in zip(("shape", "colour"), pair, (shapes, COLOURS), strict=True):
            if word not in known:
                raise unknown(f"{kind} in wanted[{place}]:", word, known)
