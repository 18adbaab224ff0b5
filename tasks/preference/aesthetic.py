"""LAION's aesthetic predictor: a small head on the image embedding of CLIP ViT-L/14.

Source: github.com/christophschuhmann/improved-aesthetic-predictor, Apache-2.0.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import DamagedError, MissingError
from bench.hashing import content_hash
from bench.lazy import torch, without_gradients
from bench.weights.checkpoints import load_checkpoint, require_weights
from bench.weights.frozen import require_numbers
from tasks.clip import with_processor

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "openai/clip-vit-large-patch14"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
MODELS = {"model": f"CLIP model; default {MODEL}", "head": f"the predictor's weights file, {HEAD}"}
LAYERS = (0, 2, 4, 6, 7)
"""Indices of the linear layers. Between them there is only dropout and no nonlinearity."""


class AestheticJudge:
    """Predicted mean rating of an image, about 1 to 10; the prompt is ignored."""

    metric = "aesthetic"
    bounds = (0.0, 10.0)

    def __init__(self, sources: dict[str, str]):
        if "head" not in sources:
            raise MissingError(
                f"the aesthetic score needs its head: set the source head to the file {HEAD} (3.7 MB, from "
                "github.com/christophschuhmann/improved-aesthetic-predictor)"
            )
        model = sources.get("model", MODEL)
        self.head_file = Path(sources["head"])
        self.clip = with_processor(model, model, sources)

    @cached_property
    def name(self) -> str:
        """Hashes of the head and of the CLIP weights. Raises MissingError without the head's file."""
        require_weights(self.head_file, "aesthetic head")
        return f"aesthetic-{content_hash([self.head_file])}-clip-{self.clip.name}"

    @cached_property
    def head(self) -> torch.nn.Sequential:
        """The head on the scorer's device, read at first use."""
        return read_head(self.head_file).to(self.clip.device)

    @without_gradients
    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """Predicted ratings, float64 [B]; `texts` is ignored."""
        ratings = self.head(self.clip.images(images_BCHW))
        return ratings.squeeze(1).double().cpu().numpy()

    def differentiable(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """The same with gradients to the images."""
        return self.head(self.clip.differentiable_images(images_BCHW)).squeeze(1)


def read_head(path: Path) -> torch.nn.Sequential:
    """The head from a .pth or .safetensors file. Raises MissingError, or DamagedError for a file of something else."""
    state = load_checkpoint(path, "aesthetic head")
    layers = []
    for place in LAYERS:
        try:
            parts = {kind: state[f"layers.{place}.{kind}"] for kind in ("weight", "bias")}
            require_numbers({f"layers.{place}.{kind}": part for kind, part in parts.items()}, path)
            weight, bias = (part.float() for part in parts.values())
            layers.append(torch.nn.Linear(weight.shape[1], weight.shape[0]))
            layers[-1].load_state_dict({"weight": weight, "bias": bias})
        except (KeyError, AttributeError, IndexError, RuntimeError) as error:
            cause = f"its layer {place} is missing or has a different shape; use {HEAD}"
            raise DamagedError(f"{path} is not a valid aesthetic head: {cause}") from error
    return torch.nn.Sequential(*layers).requires_grad_(False)
