"""From a scorer's raw scores to rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Bounds: TypeAlias = tuple[float, float]
"""The raw scores whose rewards are 0 and 1."""
Raw = TypeVar("Raw", np.ndarray, "Tensor")


def unclipped(raw: Raw, bounds: Bounds) -> Raw:
    """Raw scores of any shape mapped linearly to rewards, which may leave [0, 1]."""
    low, high = bounds
    return (raw - low) / (high - low)


def clipped(raw: np.ndarray, bounds: Bounds) -> np.ndarray:
    """The same, clipped to [0, 1]."""
    return unclipped(raw, bounds).clip(0, 1)
