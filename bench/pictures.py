"""Pictures as tensors in [0, 1] and as bytes."""

import numpy as np
from torch import Tensor


def to_bytes(images: Tensor) -> np.ndarray:
    """Pictures [..., 3, H, W] in [0, 1] -> uint8 [..., H, W, 3], rounded."""
    return (images.movedim(-3, -1).float().cpu().numpy() * 255).round().astype(np.uint8)
