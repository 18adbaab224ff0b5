"""Pictures as tensors in [0, 1], as bytes and from files."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor


def to_bytes(images: Tensor) -> np.ndarray:
    """Pictures [..., 3, H, W] in [0, 1] -> uint8 [..., H, W, 3], rounded."""
    return (images.movedim(-3, -1).float().cpu().numpy() * 255).round().astype(np.uint8)


def from_file(file: Path | BinaryIO) -> Tensor:
    """A picture file as [3, H, W] in [0, 1], RGB, upright by its EXIF. Raises OSError or ValueError if it is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (SyntaxError, Image.DecompressionBombError) as error:  # PIL's words for broken and for monstrous files
        raise ValueError(str(error)) from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
