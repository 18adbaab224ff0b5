"""Preference scores as tasks: trained on, or measured, on prompts from a user's files."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.task import Prompt, Scores
from tasks.preference.clipscore import DEFAULT
from tasks.preference.judges import JUDGES, Judge
from tasks.prompt_files import SOURCE, PromptFileTask

if TYPE_CHECKING:
    from torch import Tensor


class PreferenceTask(PromptFileTask):
    """Reward: one judge's score over its ceiling, cut to [0, 1]. Headline: the raw score."""

    version = "1"

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self._build = self.world_entry({"photo": JUDGES[self.name].build})

    @cached_property
    def judge(self) -> Judge:
        """Built when it is asked: a server may score in its place."""
        return self._build(self.given)

    @property
    def scorer_name(self) -> str:
        return f"{self.name}-{self.version}+{self.judge.name}"

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        raw = self.judge(images_BCHW, [p.text for p in prompts])
        return Scores(np.clip(raw / self.judge.ceiling, 0, 1), {self.judge.metric: raw})


class Aesthetic(PreferenceTask):
    """LAION's aesthetic predictor."""

    name = "aesthetic"
    headline = "aesthetic"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["aesthetic"].sources


class ClipScore(PreferenceTask):
    """CLIPScore, in the convention that the score's name says."""

    name = "clipscore"
    version = "2"
    headline = f"clipscore-{DEFAULT}"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["clipscore"].sources

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.headline = f"clipscore-{self.given.get('convention', DEFAULT)}"


class Hps(PreferenceTask):
    """Human preference score v2.1."""

    name = "hpsv2"
    headline = "hpsv2.1"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["hpsv2"].sources
