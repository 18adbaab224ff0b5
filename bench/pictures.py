"""Pictures as tensors in [0, 1], as bytes and from files."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from bench.errors import one_line

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 2**25
"""Pixels of a picture that is still read: more than 7680 x 4320. A small file may hold any number of them."""
DEEP = 65535
"""White of 16-bit grey."""
COUNTED = ("PNG", "PPM", "JPEG2000")
"""Formats whose grey of more than 8 bits Pillow gives as 0 to 65535, in whatever mode."""


def to_bytes(images: Tensor) -> np.ndarray:
    """Pictures [..., 3, H, W] in [0, 1] -> uint8 [..., H, W, 3], rounded."""
    return (images.movedim(-3, -1).float().cpu().numpy() * 255).round().astype(np.uint8)


class TooLargeError(ValueError):
    """A picture has more pixels than are read."""


def from_file(file: Path | BinaryIO, most: int = LARGEST) -> Tensor:
    """A picture file as [3, H, W] in [0, 1], RGB, upright by its EXIF, on white where it is transparent.

    Grey of 16 bits and of floats keeps its depth. Raises TooLargeError for more than `most` pixels, OSError or
    ValueError for what is no picture or does not say what white is.
    """
    from PIL import Image, ImageOps

    # Pillow warns of large pictures on stderr; here they are refused in so many words.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height > most:
                raise TooLargeError(f"it has {width * height:,} pixels; at most {most:,} are read")
            kind = image.format
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I") or upright.mode == "F":
                return _deep_grey(upright, kind)
            pixels = np.asarray(_rgb(upright))
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # Pillow raises whatever odd files lead it to: SyntaxError, struct.error, KeyError
        raise ValueError(one_line(error)) from error
    # From H x W x 3 to 3 x H x W before the numbers become floats, four times as large.
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float().div_(255)


def _rgb(image: "Image") -> "Image":
    """8-bit RGB, as a viewer shows it on white paper."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _deep_grey(image: "Image", kind: str | None) -> Tensor:
    """Grey of more than 8 bits, which convert("RGB") would cut off at 255."""
    pixels = np.asarray(image)
    if image.mode == "F":
        if not ((pixels >= 0) & (pixels <= 1)).all():
            raise ValueError("its pixels are floats outside [0, 1]")
        grey = pixels.astype(np.float32)
    elif image.mode != "I" or kind in COUNTED:
        hidden = image.info.get("transparency")
        grey = pixels.astype(np.float32) / DEEP
        if isinstance(hidden, int):
            grey[pixels == hidden] = 1
    else:
        raise ValueError("its pixels are 32-bit integers, and nothing says which is white")
    return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
