"""CLIPScore with CLIP ViT-L/14, in the three conventions of published code, which differ in scale and resizing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.errors import unknown
from tasks.clip import cropped, with_processor

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "openai/clip-vit-large-patch14"
VERSION = "2"
"""Version of the preprocessing and of the bounds; part of the scorer's name."""
DEFAULT = "100"
"""Default convention."""
CONVENTIONS = {
    "30": "logit / 30, image cropped to its central square (flow_grpo, Flow-OPD, UniRL)",
    "100": "logit / 100, same crop (DiffusionNFT)",
    "cosine": "cosine similarity, CLIP's own image processor (Flow-Factory)",
}
_CONVENTIONS_HELP = "; ".join(f"{name}: {meaning}" for name, meaning in CONVENTIONS.items())
MODELS = {
    "model": f"CLIP model; default {MODEL}",
    "convention": f"{_CONVENTIONS_HELP}; default {DEFAULT}",
}


class ClipScoreJudge:
    """Agreement of an image with its prompt, as CLIP sees it."""

    def __init__(self, sources: dict[str, str]):
        self.convention = sources.get("convention", DEFAULT)
        if self.convention not in CONVENTIONS:
            raise unknown("CLIPScore convention", self.convention, CONVENTIONS)
        self.metric = f"clipscore-{self.convention}"
        model = sources.get("model", MODEL)
        # The reward is 1 at a cosine of 1, which is a logit of 100.
        self.bounds = (0.0, 1.0 if self.convention == "cosine" else 100 / float(self.convention))
        prepare = None if self.convention == "cosine" else cropped
        self.clip = with_processor(model, model, sources, prepare)

    @property
    def name(self) -> str:
        """Convention, version and weights."""
        return f"{self.metric}-v{VERSION}-clip-{self.clip.name}"

    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """CLIPScores in the chosen convention, float64 [B]."""
        return (self._factor * self.clip.cosines(images_BCHW, texts)).double().cpu().numpy()

    def differentiable(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """The same with gradients to the images."""
        return self._factor * self.clip.differentiable_cosines(images_BCHW, texts)

    @property
    def _factor(self) -> float:
        """From a cosine to the score of the convention."""
        return 1.0 if self.convention == "cosine" else self.clip.scale / float(self.convention)
