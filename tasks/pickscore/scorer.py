"""PickScore's formula on a CLIPModel: exp(logit_scale) * cosine(image, text) (arXiv 2305.01569)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.clip import Clip

if TYPE_CHECKING:
    from torch import Tensor


class ClipScorer:
    """A CLIP and the range of its scores that becomes [0, 1]."""

    def __init__(self, clip: Clip, bounds: tuple[float, float]):
        self.clip, self.bounds = clip, bounds

    @property
    def name(self) -> str:
        return f"clip-{self.clip.name}"

    def raw(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """PickScore as papers print it, float64 [B]."""
        return (self.clip.scale * self.clip.cosines(images_BCHW, texts)).double().cpu().numpy()

    def reward(self, raw: np.ndarray) -> np.ndarray:
        """Scores mapped linearly to [0, 1] (published recipes: raw / 26, that is the range 0 to 26)."""
        low, high = self.bounds
        return ((raw - low) / (high - low)).clip(0, 1)
