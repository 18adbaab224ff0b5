"""The contract of feature spaces: what images of a world look like, apart from any reward.

Measures of diversity are computed from it (bench/analysis/diversity.py). Like a scorer, a feature space belongs to a
world, under whose name it is registered (entry points "bench.features").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bench.api.task import Prompt


class FeatureSpace(ABC):
    """Features of images, with a distance, and attributes of what they show."""

    cosine: ClassVar[bool] = True
    """Whether the distance is 1 - cosine similarity; otherwise it is the root mean square of the difference."""
    sources: ClassVar[dict[str, str]] = {}
    """key -> meaning of the settings that a user may give (--set scorers.features.<key>=VALUE)."""

    def __init__(self, sources: dict[str, str] | None = None):
        self.given = sources or {}

    @property
    @abstractmethod
    def name(self) -> str:
        """Extractor, version and weights; part of the measures' names, so that only equal spaces are compared."""

    @abstractmethod
    def features(self, images_BCHW: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W] in [0, 1], of any floating-point type. Deterministic."""

    def attributes(self, images_BCHW: Tensor, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        """Attributes that prompts may leave open, such as the background: name -> a label for each image, text [B].

        A label is "" where the prompt decides the attribute. Default: none.
        """
        return {}
