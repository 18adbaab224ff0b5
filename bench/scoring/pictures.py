"""Pictures as tensors in [0, 1], as bytes and from files."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from bench.errors import one_line
from bench.lazy import torch
from bench.system.files import open_file
from bench.weights.checkpoints import LOOKED_AT, stand_in

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from torch import Tensor

LARGEST = 2**25
"""Pixels of a picture that is still read: more than 7680 x 4320. A small file may hold any number of them."""
THINNEST = 50
"""Times its short side that a picture may be long: scorers enlarge the short side to hundreds of pixels, and a line of
167 bytes became gigabytes."""
DEEP = 65535
"""White of 16-bit grey."""
READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "AVIF", "PPM")
"""Formats that are read, whatever a file's name says. Pillow knows others, among them such as start a program: EPS."""
COUNTED = ("PNG", "PPM", "JPEG2000")
"""Formats whose grey of more than 8 bits Pillow gives as 0 to 65535, in whatever mode."""


BITS, MEANING, WHITE_IS_ZERO = 258, 262, 0
"""TIFF's BitsPerSample and PhotometricInterpretation, and a value of the latter."""
SHALLOW = {"L;2": 85, "L;4": 17}
"""PNG's grey of fewer than 8 bits, as Pillow calls it -> the factor by which Pillow makes it 8."""


def to_bytes(images: Tensor) -> np.ndarray:
    """Pictures [..., 3, H, W] in [0, 1] -> uint8 [..., H, W, 3], rounded."""
    return (images.movedim(-3, -1).float().cpu().numpy() * 255).round().astype(np.uint8)


class TooLargeError(ValueError):
    """A picture has more pixels than are read."""


def from_file(file: Path | BinaryIO, most: int = LARGEST) -> Tensor:
    """A picture file as [3, H, W] in [0, 1], RGB, upright by its EXIF, on white where it is transparent.

    Grey of 16 bits and of floats keeps its depth. Raises TooLargeError for more than `most` pixels, OSError or
    ValueError for what is no picture, is thinner than 1:THINNEST, has several frames or does not say what white is.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    # Pillow warns of large pictures and of odd EXIF on stderr; here what matters is refused in so many words.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    Image.init()
    known = [kind for kind in READ if kind in Image.OPEN]
    try:
        with (
            open_file(file) if isinstance(file, Path) else nullcontext(file) as opened,
            Image.open(_of_a_picture(opened), formats=known) as image,
        ):
            width, height = image.size
            if width * height > most:
                raise TooLargeError(f"it has {width * height:,} pixels; at most {most:,} are read")
            if max(width, height) > THINNEST * min(width, height):
                raise ValueError(f"it is {width:,} x {height:,} pixels; none thinner than 1:{THINNEST} is read")
            kind = image.format
            _refuse_what_is_not_one_picture(image)
            _mend_transparency(image)
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I") or upright.mode == "F":
                return _deep_grey(upright, kind)
            pixels = np.asarray(_rgb(upright))
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(known)}") from error
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # Pillow raises whatever odd files lead it to: SyntaxError, struct.error, KeyError
        raise ValueError(one_line(error)) from error
    # From H x W x 3 to 3 x H x W before the numbers become floats, four times as large. A copy: Pillow's is read-only.
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")).float().div_(255)


def _of_a_picture(opened: BinaryIO) -> BinaryIO:
    """The same file, at its beginning. Raises ValueError for one that is empty or stands for a picture elsewhere."""
    head = opened.read(LOOKED_AT)
    cause = stand_in(head) if head else "it is empty"
    if cause and b"<svg" not in head:  # a drawing is XML too, and no web page
        raise ValueError(cause)
    opened.seek(0)
    return opened


def _refuse_what_is_not_one_picture(image: ImageFile) -> None:
    """Raise ValueError for several frames, and for grey that Pillow gives with another white than its mode says."""
    from PIL.TiffImagePlugin import TiffImageFile

    # A JPEG with others behind it (MPO, as telephones write it) begins with the picture itself.
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise ValueError(f"it holds {frames} frames, and nothing says which is meant")
    if isinstance(image, TiffImageFile) and image.mode.startswith(("I", "F")):
        bits, meaning = image.tag_v2.get(BITS, (1,))[0], image.tag_v2.get(MEANING)
        if image.mode.startswith("I;") and bits != 16:
            raise ValueError(f"its grey has {bits} bits a pixel; of more than 8, only 16 are read")
        if meaning == WHITE_IS_ZERO:
            raise ValueError("its grey is of more than 8 bits and has white at zero, which is not read")


def _mend_transparency(image: ImageFile) -> None:
    """Which value of a PNG is clear, in Pillow's 8 bits: it gives the file's own. Raises ValueError where 16 bits of
    colour have become 8, in which others may be the same."""
    if image.format != "PNG" or "transparency" not in image.info or not image.tile:
        return
    how = image.tile[0][3]
    if how == "RGB;16B":
        raise ValueError("its colours are of 16 bits, one of them transparent, which is not read")
    if how in SHALLOW:
        image.info["transparency"] *= SHALLOW[how]


def _rgb(image: Image) -> Image:
    """8-bit RGB, as a viewer shows it on white paper."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _deep_grey(image: Image, kind: str | None) -> Tensor:
    """Grey of more than 8 bits, which convert("RGB") would cut off at 255."""
    pixels = np.asarray(image)
    if image.mode == "F":
        if not ((pixels >= 0) & (pixels <= 1)).all():
            raise ValueError("its pixels are floats outside [0, 1]")
        grey: np.ndarray = pixels.astype(np.float32)
    elif image.mode != "I" or kind in COUNTED:
        hidden = image.info.get("transparency")
        grey = pixels.astype(np.float32) / DEEP
        if isinstance(hidden, int):
            grey[pixels == hidden] = 1
    else:
        raise ValueError("its pixels are 32-bit integers, and nothing says which is white")
    return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
