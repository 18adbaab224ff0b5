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
"""Of what is made of a picture before CLIP sees it, and of the ceiling; part of every name that the judge is in."""
DEFAULT = "100"
CONVENTIONS = {
    "30": "logit over 30, cropped to its central square (flow_grpo, Flow-OPD, UniRL)",
    "100": "logit over 100, cropped likewise (DiffusionNFT)",
    "cosine": "cosine, CLIP's own image processor (Flow-Factory)",
}
MODELS = {
    "model": f"CLIP model; default {MODEL}",
    "convention": "; ".join(f"{name}: {meaning}" for name, meaning in CONVENTIONS.items()) + f"; default {DEFAULT}",
}


class ClipScoreJudge:
    """Agreement of a picture with its prompt."""

    def __init__(self, sources: dict[str, str]):
        self.convention = sources.get("convention", DEFAULT)
        if self.convention not in CONVENTIONS:
            raise unknown("CLIPScore convention", self.convention, CONVENTIONS)
        self.metric = f"clipscore-{self.convention}"
        model = sources.get("model", MODEL)
        # A cosine of 1 is a logit of 100.
        self.ceiling = 1.0 if self.convention == "cosine" else 100 / float(self.convention)
        self.clip = with_processor(model, model, sources, None if self.convention == "cosine" else cropped)

    @property
    def name(self) -> str:
        return f"{self.metric}-v{VERSION}-clip-{self.clip.name}"

    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        factor = 1.0 if self.convention == "cosine" else self.clip.scale / float(self.convention)
        return (factor * self.clip.cosines(images_BCHW, texts)).double().cpu().numpy()
