"""GenEval's colour classifier: CLIP ViT-L/14 chooses among ten colours for an object cut out by its mask.

Cut-outs are resized as by open_clip in evaluation (torchvision's Resize and CenterCrop on PIL images). Its crop differs
by one pixel from that of transformers where the margin is odd.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bench.lazy import torch
from bench.scoring.pictures import to_bytes
from tasks.clip import Pictures, with_processor
from tasks.geneval.detector import Detection

if TYPE_CHECKING:
    from torch import Tensor

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
BACKGROUND = 153
"""Grey level outside the object's mask."""
THIN = 50
"""Largest aspect ratio at which a cut-out is resized without first removing its ends."""


class ColourJudge(Protocol):
    """Anything that classifies the colour of detected objects."""

    @property
    def name(self) -> str:
        """Identifies the judge; part of the scorer's name."""

    def judge(self, image_CHW: Tensor, objects: list[Detection], noun: str) -> list[str]:
        """Colours of objects of one class, called `noun`, in an image [3, H, W] in [0, 1]."""


class ClipColourJudge:
    """A CLIPModel with its tokenizer: a folder in transformers' format, or a hub id.

    The official evaluator runs open_clip's ViT-L-14 "openai", whose weights are openai/clip-vit-large-patch14, under
    half-precision autocast; here it runs in float32.
    """

    def __init__(self, source: str, colours: tuple[str, ...], sources: dict[str, str] | None = None):
        """`sources` may set device, precision and batch (tasks/clip.py)."""
        self.clip = with_processor(source, source, sources or {}, open_clip_pixels)
        self.colours = colours
        self._words = cache(self._embed_words)

    @property
    def name(self) -> str:
        """Identifies the weights and their precision."""
        return f"clip-colours-{self.clip.name}"

    def _embed_words(self, noun: str) -> Tensor:
        """One unit vector per colour, [colours, D]: the renormalised mean over the prompt templates."""
        texts = [t.format(colour=colour, name=noun) for colour in self.colours for t in TEMPLATES]
        by_colour = self.clip.texts(texts).unflatten(0, (-1, len(TEMPLATES)))
        return torch.nn.functional.normalize(by_colour.mean(1), dim=-1)

    def judge(self, image_CHW: Tensor, objects: list[Detection], noun: str) -> list[str]:
        """The most likely colour of each object.

        Raises FloatingPointError for values that are not finite, since argmax of NaNs would silently give a colour.
        """
        if not objects:
            return []
        images = self.clip.images([cut_out(image_CHW, o) for o in objects])
        likeness = images @ self._words(noun).T
        if not likeness.isfinite().all():
            raise FloatingPointError("the colour judge gives values that are not finite")
        return [self.colours[i] for i in likeness.argmax(1).tolist()]


def open_clip_pixels(pictures: Pictures, side: int) -> Tensor:
    """PIL images of any sizes -> pixel values [B, 3, side, side].

    The short side is resized to `side` (bicubic), the centre cropped and normalised with CLIP's mean and std.
    """
    from PIL import Image
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    assert isinstance(pictures, list)  # the judge passes PIL images only
    found = []
    for picture in map(without_ends, pictures):
        short = min(picture.size)
        size = [int(side * length / short) for length in picture.size]
        scaled = picture.resize(size, Image.Resampling.BICUBIC)
        # Python rounds halves to even, like torchvision.
        left, top = (round((length - side) / 2) for length in scaled.size)
        square = scaled.crop((left, top, left + side, top + side))
        pixels = np.asarray(square, np.float32)
        found.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    mean = torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)
    return (torch.stack(found) - mean) / std


def without_ends(picture):
    """The image itself, or the middle part of one thinner than 1:THIN; a line one pixel wide would resize to gigabytes.

    The ends are outside the central square anyway. The same even number of squares is removed from both ends, so that
    scale and rounding are those of the complete image.
    """
    short, long = sorted(picture.size)
    end = 2 * short * max(0, (long - THIN * short) // (4 * short))
    left, top = (end if side == long else 0 for side in picture.size)
    if not end:
        return picture
    return picture.crop((left, top, picture.width - left, picture.height - top))


def cut_out(image_CHW: Tensor, found: Detection):
    """The object on a grey background, cropped to its box, as a PIL image."""
    from PIL import Image

    on_grey = np.where(found.mask[..., None], to_bytes(image_CHW), np.uint8(BACKGROUND))
    left, top, right, bottom = (round(side) for side in found.box)
    return Image.fromarray(on_grey).crop((left, top, right, bottom))
