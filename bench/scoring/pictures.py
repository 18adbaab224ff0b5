"""Images as tensors in [0, 1]: to bytes, and from files of many formats."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
"""Largest image that is read, in pixels: more than 7680 x 4320. A small compressed file may expand to any size."""
THINNEST = 50
"""Largest ratio of an image's long side to its short side.

Scorers enlarge the short side to hundreds of pixels; without a limit, a line of 167 bytes became gigabytes.
"""
DEEP = 65535
"""The value of white in 16-bit grey."""
READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "AVIF", "PPM")
"""Formats that are read, whatever the file's name says. Pillow knows more; EPS for one starts an external program."""
COUNTED = ("PNG", "PPM", "JPEG2000")
"""Formats whose grey values above 8 bits Pillow always scales to 0..65535."""
BITS, MEANING, WHITE_IS_ZERO = 258, 262, 0
"""The TIFF tags BitsPerSample and PhotometricInterpretation, and a value of the latter."""
SHALLOW = {"L;2": 85, "L;4": 17}
"""Pillow's name of a PNG grey mode below 8 bits -> the factor with which Pillow expands it to 8 bits."""


def to_bytes(images: Tensor) -> np.ndarray:
    """Images [..., 3, H, W] in [0, 1] -> uint8 [..., H, W, 3], rounded to nearest."""
    return (images.movedim(-3, -1).float().cpu().numpy() * 255).round().astype(np.uint8)


class TooLargeError(ValueError):
    """An image has more pixels than the limit."""


def from_file(file: Path | BinaryIO, most: int = LARGEST) -> Tensor:
    """Read an image file as [3, H, W] in [0, 1]: RGB, rotated as its EXIF says, on white where it is transparent.

    Grey values of 16 bits and floats keep their precision. Raises TooLargeError for more than `most` pixels, and
    OSError or ValueError for a file that is not an image, is thinner than 1:THINNEST, has several frames, or leaves
    open which value is white.
    """
    from PIL import ImageOps

    with _opened(file, most) as image:
        kind = image.format
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":
            return _deep_grey(upright, kind)
        pixels = np.asarray(_rgb(upright))
    # Transposed while still bytes: floats take four times the memory. Copied: Pillow's array is read-only.
    channels_first = np.array(pixels.transpose(2, 0, 1), order="C")
    return torch.from_numpy(channels_first).float().div_(255)


def check_header(file: Path) -> None:
    """Raise what `from_file` would raise because of the file's header, without decoding the pixels."""
    with _opened(file, LARGEST):
        pass


@contextmanager
def _opened(file: Path | BinaryIO, most: int) -> Iterator[ImageFile]:
    """The open image of a file whose header was checked. Errors of the block are raised as `from_file` raises them."""
    from PIL import Image, UnidentifiedImageError

    # Pillow warns on stderr about large images and odd EXIF; anything that matters is an error with a message below.
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
                raise TooLargeError(f"it has {width * height:,} pixels, more than the limit of {most:,}")
            if max(width, height) > THINNEST * min(width, height):
                raise ValueError(f"it is {width:,} x {height:,} pixels, which is thinner than 1:{THINNEST}")
            _refuse_ambiguous(image)
            _mend_transparency(image)
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"its format is not one of {', '.join(known)}") from error
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # odd files make Pillow raise anything: SyntaxError, struct.error, KeyError
        raise ValueError(one_line(error)) from error


def _of_a_picture(opened: BinaryIO) -> BinaryIO:
    """Return the file rewound. Raises ValueError if it is empty or only points to an image stored elsewhere."""
    head = opened.read(LOOKED_AT)
    cause = stand_in(head) if head else "it is empty"
    if cause and b"<svg" not in head:  # SVG looks like a web page, but is refused for its format instead
        raise ValueError(cause)
    opened.seek(0)
    return opened


def _refuse_ambiguous(image: ImageFile) -> None:
    """Raise ValueError for several frames, and for grey values whose white differs from what Pillow's mode implies."""
    from PIL.TiffImagePlugin import TiffImageFile

    # MPO is what phones write: a JPEG followed by others. Its first frame is the image itself.
    frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    if frames > 1:
        raise ValueError(f"it contains {frames} frames instead of one image")
    if isinstance(image, TiffImageFile) and image.mode.startswith(("I", "F")):
        bits = image.tag_v2.get(BITS, (1,))[0]
        meaning = image.tag_v2.get(MEANING)
        if image.mode.startswith("I;") and bits != 16:
            raise ValueError(f"its grey values have {bits} bits; above 8, only 16 are supported")
        if meaning == WHITE_IS_ZERO:
            raise ValueError("its grey values have more than 8 bits and white at zero, which is not supported")


def _mend_transparency(image: ImageFile) -> None:
    """Scale a PNG's transparent value, which Pillow leaves in the file's bit depth, to 8 bits like the pixels.

    Raises ValueError for 16-bit colour: reduced to 8 bits, other colours may equal the transparent one.
    """
    if image.format != "PNG" or "transparency" not in image.info or not image.tile:
        return
    how = image.tile[0][3]
    if how == "RGB;16B":
        raise ValueError("its colours have 16 bits and one of them is transparent, which is not supported")
    if how in SHALLOW:
        image.info["transparency"] *= SHALLOW[how]


def _rgb(image: Image) -> Image:
    """8-bit RGB; transparent parts show white, as in a viewer."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(white, seen).convert("RGB")


def _deep_grey(image: Image, kind: str | None) -> Tensor:
    """Grey values above 8 bits as [3, H, W]; convert("RGB") would clip them at 255."""
    pixels = np.asarray(image)
    if image.mode == "F":
        if not ((pixels >= 0) & (pixels <= 1)).all():
            raise ValueError("its pixels include floats outside [0, 1]")
        grey: np.ndarray = pixels.astype(np.float32)
    elif image.mode != "I" or kind in COUNTED:
        hidden = image.info.get("transparency")
        grey = pixels.astype(np.float32) / DEEP
        if isinstance(hidden, int):
            grey[pixels == hidden] = 1
    else:
        raise ValueError("its pixels are 32-bit integers, for which the value of white is unknown")
    return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
