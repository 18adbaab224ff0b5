"""The preference task: PickScore, or on micro a CLIP scorer trained on pairs in the same way."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from bench.api.task import Prompt, Scores, Task
from bench.backbones.micro.captions import caption
from bench.backbones.micro.worlds import DRAWN, DrawnWorld
from tasks.clip import Clip, standardise
from tasks.pickscore import micro
from tasks.pickscore.gold import gold_parts, utility
from tasks.pickscore.photo import SOURCES, photo_scorer
from tasks.pickscore.scorer import ClipScorer
from tasks.prompt_files import as_prompts, read_prompts

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {"test": 192, "validation": 96, "train": 2000}
"""Prompts per split on micro."""


def _drawn_prompts(world: DrawnWorld) -> dict[str, list[Prompt]]:
    return {
        split: [Prompt(caption(b), "illustration", {"wanted": micro.pairs(b)}) for b in briefs]
        for split, briefs in micro.briefs(world, SIZES).items()
    }


def drawn_scorer(world: DrawnWorld) -> ClipScorer:
    """The world's preference model. Raises MissingError if it has none."""
    calibration = json.loads(world.require(world.preference / "calibration.json").read_text())
    clip = Clip(str(world.preference), partial(micro.tokenise, world.shapes), partial(standardise, mode="bicubic"))
    return ClipScorer(clip, (calibration["low"], calibration["high"]))


def _photo_prompts(sources: dict[str, str]) -> dict[str, list[Prompt]]:
    return as_prompts(read_prompts("pickscore", sources))


def _drawn(world: DrawnWorld) -> tuple[Callable, Callable, tuple[str, ...]]:
    return lambda _: _drawn_prompts(world), lambda _: drawn_scorer(world), world.shapes


# World -> (function that gives prompts by split, function that builds the scorer, shapes where the utility is known).
WORLDS: dict[str, tuple[Callable, Callable, tuple[str, ...] | None]] = {
    name: _drawn(world) for name, world in DRAWN.items()
} | {"photo": (_photo_prompts, photo_scorer, None)}


class PickScore(Task):
    """Reward: the learned score mapped to [0, 1]. Where the true utility is known, 'gold' reports it."""

    name = "pickscore"
    version = "1"
    headline = "reward"
    in_all = True
    sources = SOURCES
    sources_in = ("photo",)

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self._prompts, scorer, self.shapes = self.world_entry(WORLDS)
        self.scorer: ClipScorer = scorer(self.given)
        if world in DRAWN:
            self.headline = DRAWN[world].headlines.get(self.name, self.headline)

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        return self._prompts(self.given)

    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of a split; on micro their metadata hold the `wanted` (shape, colour) pairs."""
        return self._splits[split]

    @property
    def scorer_name(self) -> str:
        """Version and the scorer's weights."""
        return f"pickscore-{self.version}+{self.scorer.name}"

    def check(self, prompt: Prompt) -> None:
        """In drawn worlds, raise UsageError for unknown words or missing pairs (see micro.check_prompt)."""
        if self.shapes:
            micro.check_prompt(prompt, self.shapes)

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The reward, the raw score as "pickscore" and, on micro, the utility as "gold" with its parts "gold.PART"."""
        raw = self.scorer.raw(images_BCHW, [p.text for p in prompts])
        metrics: dict[str, np.ndarray] = {"pickscore": raw}
        if self.shapes:
            # JSON has no tuples: pairs from files or over HTTP are lists.
            wanted = [[tuple(pair) for pair in p.metadata["wanted"]] for p in prompts]
            parts = gold_parts(images_BCHW, wanted, self.shapes)
            metrics["gold"] = utility(parts)
            metrics |= {f"gold.{name}": values for name, values in parts.items()}
        return Scores(self.scorer.reward(raw), metrics)

    def differentiable_reward(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Tensor:
        """The reward of `score` with gradients to the images, not clipped to [0, 1]."""
        return self.scorer.differentiable_reward(images_BCHW, [p.text for p in prompts])
