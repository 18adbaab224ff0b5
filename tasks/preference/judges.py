"""What a preference score is, and those there are, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tasks.clip import BATCH, devices
from tasks.pickscore import photo as pickscore
from tasks.preference import aesthetic, clipscore, hps

if TYPE_CHECKING:
    from torch import Tensor


class Judge(Protocol):
    """A score of pictures under their prompts."""

    metric: str
    """The score's name, with its convention where there are several."""
    ceiling: float
    """Raw score that becomes a reward of 1; 0 stays 0."""

    @property
    def name(self) -> str:
        """Engine, version and weights."""

    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """Raw scores, float64 [B], of pictures in [0, 1]."""


@dataclass(frozen=True)
class Kind:
    """A judge that can be built, and what it is built from."""

    build: Callable[[dict[str, str]], Judge]
    sources: dict[str, str]


class PickScoreJudge:
    """PickScore as a judge among others."""

    metric = "pickscore"
    ceiling = pickscore.BOUNDS[1]

    def __init__(self, sources: dict[str, str]):
        self.scorer = pickscore.photo_scorer(sources)

    @property
    def name(self) -> str:
        return self.scorer.name

    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        return self.scorer.raw(images_BCHW, texts)


JUDGES = {
    "pickscore": Kind(PickScoreJudge, pickscore.MODELS | devices(BATCH)),
    "aesthetic": Kind(aesthetic.AestheticJudge, aesthetic.MODELS | devices(BATCH)),
    "clipscore": Kind(clipscore.ClipScoreJudge, clipscore.MODELS | devices(BATCH)),
    "hpsv2": Kind(hps.HpsJudge, hps.MODELS | devices(BATCH)),
}
