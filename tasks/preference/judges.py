"""The contract of a preference score (judge), and the available judges by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tasks.bounds import Bounds
from tasks.clip import BATCH, devices
from tasks.pickscore import photo as pickscore
from tasks.preference import aesthetic, clipscore, hps, hpsv3, imagereward, vision

if TYPE_CHECKING:
    from torch import Tensor


class Judge(Protocol):
    """A preference score of images given their prompts."""

    metric: str
    """Name of the metric, including the convention if there are several."""
    bounds: Bounds
    """Raw scores whose rewards are 0 and 1. The lower one is below 0 for a score that is negative for bad images."""

    @property
    def name(self) -> str:
        """Engine, version and weights; part of the scorer's name."""

    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """Raw scores, float64 [B], of images [B, 3, H, W] in [0, 1] for their prompts' texts."""

    def differentiable(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """The same scores, float32 [B], with gradients to the images."""


@dataclass(frozen=True)
class Kind:
    """How to build a judge, and the settings (key -> meaning) that it is built from."""

    build: Callable[[dict[str, str]], Judge]
    sources: dict[str, str]


class PickScoreJudge:
    """PickScore as a judge."""

    metric = "pickscore"
    bounds = pickscore.BOUNDS

    def __init__(self, sources: dict[str, str]):
        self.scorer = pickscore.photo_scorer(sources)

    @property
    def name(self) -> str:
        """Weights of the scorer."""
        return self.scorer.name

    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """PickScores, float64 [B]."""
        return self.scorer.raw(images_BCHW, texts)

    def differentiable(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """The same with gradients to the images."""
        return self.scorer.clip.scale * self.scorer.clip.differentiable_cosines(images_BCHW, texts)


JUDGES = {
    "pickscore": Kind(PickScoreJudge, pickscore.MODELS | devices(BATCH)),
    "aesthetic": Kind(aesthetic.AestheticJudge, aesthetic.MODELS | devices(BATCH)),
    "clipscore": Kind(clipscore.ClipScoreJudge, clipscore.MODELS | devices(BATCH)),
    "hpsv2": Kind(hps.HpsJudge, hps.MODELS | devices(BATCH)),
    "hpsv3": Kind(hpsv3.HpsV3Judge, hpsv3.SOURCES),
    "imagereward": Kind(imagereward.ImageRewardJudge, imagereward.MODELS | devices(BATCH)),
    "vqascore": Kind(vision.VqaScoreJudge, vision.MODELS),
    "quality": Kind(vision.QualityJudge, vision.MODELS),
}
