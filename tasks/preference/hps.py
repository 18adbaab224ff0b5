"""HPSv2.1 (arXiv 2306.09341): the unscaled cosine similarity of a fine-tuned CLIP ViT-H/14, about 0.2 to 0.35.

The released HPS_v2.1_compressed.pt is an open_clip checkpoint. open_clip needs a torchvision that matches the torch
build, so the checkpoint is converted once to transformers' CLIPModel (open_clip_weights.py), which computes the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.errors import MissingError
from tasks.clip import with_processor

if TYPE_CHECKING:
    from torch import Tensor

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
MODELS = {
    "model": "folder with the converted HPS_v2.1_compressed.pt (hub: xswu/HPSv2)",
    "processor": f"tokenizer and image processor of the model; default {PROCESSOR}",
}


class HpsJudge:
    """Human preference score, version 2.1."""

    metric = "hpsv2.1"
    bounds = (0.0, 1.0)

    def __init__(self, sources: dict[str, str]):
        if "model" not in sources:
            raise MissingError(
                "HPSv2.1 needs its weights: download HPS_v2.1_compressed.pt (hub: xswu/HPSv2), convert it (python -m "
                "tasks.preference.open_clip_weights CHECKPOINT.pt FOLDER) and set the source model to FOLDER"
            )
        self.clip = with_processor(sources["model"], sources.get("processor", PROCESSOR), sources)

    @property
    def name(self) -> str:
        """Metric and weights."""
        return f"hpsv2.1-clip-{self.clip.name}"

    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """Cosine similarities, float64 [B]."""
        return self.clip.cosines(images_BCHW, texts).double().cpu().numpy()

    def differentiable(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """The same with gradients to the images."""
        return self.clip.differentiable_cosines(images_BCHW, texts)
