"""Bicubic resizing as published scorers do it, through 256 levels of a pixel, and its gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from bench.lazy import torch, without_gradients
from bench.scoring.pictures import to_bytes

if TYPE_CHECKING:
    from torch import Tensor

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""
Resize: TypeAlias = Callable[["Tensor", Size], "Tensor"]
"""(Images [B, 3, H, W] in [0, 1], size) -> images of that size."""


def through_pil(images_BCHW: Tensor, size: Size) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] resized by PIL, on the CPU, without gradients."""
    from PIL import Image

    pictures = (Image.fromarray(levels) for levels in to_bytes(images_BCHW.detach()))
    found = [np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(found)).movedim(-1, -3) / 255


def straight_through(images_BCHW: Tensor, size: Size) -> Tensor:
    """The values of `through_pil`, with the gradients of the same resizing of tensors."""
    smooth = torch.nn.functional.interpolate(images_BCHW.float().cpu(), size, mode="bicubic", antialias=True)
    return with_gradient_of(smooth, through_pil(images_BCHW, size))


def with_gradient_of(smooth: Tensor, exact: Tensor) -> Tensor:
    """The values of `exact`, up to rounding, with the gradients of `smooth`, of the same shape."""
    return smooth + (exact - smooth).detach()


class ResizingScorer(ABC):
    """A score of images that are resized by PIL, with the gradients of the same resizing of tensors."""

    @abstractmethod
    def _scores(self, images_BCHW: Tensor, texts: list[str], resize: Resize) -> Tensor:
        """Scores [B] of images resized by `resize`."""

    @without_gradients
    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """Scores, float64 [B]."""
        return self._scores(images_BCHW, texts, through_pil).double().cpu().numpy()

    def differentiable(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """The same with gradients to the images."""
        return self._scores(images_BCHW, texts, straight_through)
