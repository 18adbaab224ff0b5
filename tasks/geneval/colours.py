"""GenEval's judge of colours: CLIP ViT-L/14 on the object, cut out by its mask, among ten colours.

Cut-outs are brought to CLIP's size as open_clip does it for evaluation (torchvision's Resize and CenterCrop on PIL
pictures), whose crop lies a pixel beside transformers' where the margin is odd.
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
"""Times its short side that a cut-out is scaled whole."""


class ColourJudge(Protocol):
    """Anything that names the colour of a detected object."""

    @property
    def name(self) -> str:
        """Part of every score's name."""

    def judge(self, image_CHW: Tensor, objects: list[Detection], noun: str) -> list[str]:
        """The colour of each object, all of one noun, in a picture [3, H, W] in [0, 1]."""


class ClipColourJudge:
    """A CLIPModel with its tokenizer: a folder in transformers' format, or a hub id.

    The official evaluator runs open_clip's ViT-L-14 "openai", whose weights are openai/clip-vit-large-patch14, under
    half-precision autocast; here it is float32.
    """

    def __init__(self, source: str, colours: tuple[str, ...], sources: dict[str, str] | None = None):
        """`sources` say where and how it runs (tasks/clip.py)."""
        self.clip, self.colours = with_processor(source, source, sources or {}, open_clip_pixels), colours
        self._words = cache(self._embed_words)

    @property
    def name(self) -> str:
        return f"clip-colours-{self.clip.name}"

    def _embed_words(self, noun: str) -> Tensor:
        """One unit vector a colour [colours, D]: the renormalised mean over the templates."""
        texts = [t.format(colour=colour, name=noun) for colour in self.colours for t in TEMPLATES]
        return torch.nn.functional.normalize(self.clip.texts(texts).unflatten(0, (-1, len(TEMPLATES))).mean(1), dim=-1)

    def judge(self, image_CHW: Tensor, objects: list[Detection], noun: str) -> list[str]:
        """As the protocol says. Raises FloatingPointError where CLIP makes no numbers of them: the largest of none is
        the first colour."""
        if not objects:
            return []
        images = self.clip.images([cut_out(image_CHW, o) for o in objects])
        likeness = images @ self._words(noun).T
        if not likeness.isfinite().all():
            raise FloatingPointError("the colour judge gives values that are not finite")
        return [self.colours[i] for i in likeness.argmax(1).tolist()]


def open_clip_pixels(pictures: Pictures, side: int) -> Tensor:
    """PIL pictures of any sizes -> pixel values [B, 3, side, side]: short side to `side`, centre, CLIP's statistics."""
    from PIL import Image
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    assert isinstance(pictures, list)  # the judge shows no tensors
    found = []
    for picture in map(without_ends, pictures):
        short = min(picture.size)
        scaled = picture.resize([int(side * length / short) for length in picture.size], Image.Resampling.BICUBIC)
        left, top = (round((length - side) / 2) for length in scaled.size)  # halves to the even side, as torchvision
        pixels = np.asarray(scaled.crop((left, top, left + side, top + side)), np.float32)
        found.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (torch.stack(found) - mean) / std


def without_ends(picture):
    """The picture, and of one thinner than 1:THIN the middle: a line a pixel wide would become gigabytes.

    The central square does not show the ends. They go by whole squares, an even number at each, so that the scale and
    the roundings stay what they are for the whole picture.
    """
    short, long = sorted(picture.size)
    end = 2 * short * max(0, (long - THIN * short) // (4 * short))
    left, top = (end if side == long else 0 for side in picture.size)
    return picture.crop((left, top, picture.width - left, picture.height - top)) if end else picture


def cut_out(image_CHW: Tensor, found: Detection):
    """The object on grey as a PIL picture, cut to its box."""
    from PIL import Image

    on_grey = np.where(found.mask[..., None], to_bytes(image_CHW), np.uint8(BACKGROUND))
    left, top, right, bottom = (round(side) for side in found.box)
    return Image.fromarray(on_grey).crop((left, top, right, bottom))
