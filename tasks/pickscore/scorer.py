"""PickScore's formula on a CLIPModel: exp(logit_scale) * cosine(image, text) (arXiv 2305.01569)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tasks.bounds import Bounds, clipped, unclipped
from tasks.clip import Clip

if TYPE_CHECKING:
    from torch import Tensor


class ClipScorer:
    """A CLIP, and the range of its raw scores that is mapped to rewards in [0, 1]."""

    def __init__(self, clip: Clip, bounds: Bounds):
        self.clip, self.bounds = clip, bounds

    @property
    def name(self) -> str:
        """Identifies the weights and their precision."""
        return f"clip-{self.clip.name}"

    def raw(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """Raw scores as papers report them, float64 [B], of images [B, 3, H, W] in [0, 1]."""
        logits = self.clip.scale * self.clip.cosines(images_BCHW, texts)
        return logits.double().cpu().numpy()

    def reward(self, raw: np.ndarray) -> np.ndarray:
        """Raw scores mapped linearly to [0, 1] and clipped (published: raw / 26, that is the range 0 to 26)."""
        return clipped(raw, self.bounds)

    def differentiable_reward(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """`reward` of `raw`, [B], with gradients to the images; not clipped, as a clipped reward has no gradient."""
        raw = self.clip.scale * self.clip.differentiable_cosines(images_BCHW, texts)
        return unclipped(raw, self.bounds)
