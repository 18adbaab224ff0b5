"""GenEval's judge of colours: CLIP ViT-L/14 on the object, cut out by its mask, among ten colours."""

from functools import cache, cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bench.pictures import to_bytes
from bench.weights import load_frozen, load_processor, weights_name
from tasks.geneval.detector import Detection

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
BACKGROUND = 153
"""Grey level outside the object's mask."""


class ColourJudge(Protocol):
    """Anything that names the colour of a detected object."""

    name: str

    def judge(self, image_CHW: Tensor, objects: list[Detection], noun: str) -> list[str]:
        """The colour of each object, all of one noun, in a picture [3, H, W] in [0, 1]."""


class ClipColourJudge:
    """A CLIPModel with its tokenizer and image processor: a folder in transformers' format, or a hub id.

    The official evaluator runs open_clip's ViT-L-14 "openai", whose weights are openai/clip-vit-large-patch14, under
    half-precision autocast; here it is float32.
    """

    def __init__(self, source: str, colours: tuple[str, ...], device: str = "cpu", precision: str = "float32"):
        self.source, self.colours, self.device, self.precision = source, colours, device, precision
        self._words = cache(self._embed_words)

    @cached_property
    def name(self) -> str:
        return f"clip-colours-{weights_name(self.source, self.precision)}"

    @cached_property
    def _clip(self):
        from transformers import CLIPModel

        return load_frozen(CLIPModel, self.source, self.device, "CLIP model", self.precision), *load_processor(
            self.source
        )

    @torch.no_grad()
    def _embed_words(self, noun: str) -> Tensor:
        """One unit vector a colour [colours, D]: the renormalised mean over the templates."""
        model, tokenizer, _ = self._clip
        texts = [t.format(colour=colour, name=noun) for colour in self.colours for t in TEMPLATES]
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        single = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output.float(), dim=-1)
        return torch.nn.functional.normalize(single.unflatten(0, (-1, len(TEMPLATES))).mean(1), dim=-1)

    @torch.no_grad()
    def judge(self, image_CHW: Tensor, objects: list[Detection], noun: str) -> list[str]:
        """As the protocol says."""
        if not objects:
            return []
        model, _, processor = self._clip
        crops = [cut_out(image_CHW, o) for o in objects]
        pixels = processor(images=crops, return_tensors="pt")["pixel_values"].to(self.device, model.dtype)
        embedded = model.get_image_features(pixel_values=pixels).pooler_output.float()
        images = torch.nn.functional.normalize(embedded, dim=-1)
        return [self.colours[i] for i in (images @ self._words(noun).T).argmax(1).tolist()]


def cut_out(image_CHW: Tensor, found: Detection):
    """The object on grey as a PIL picture, cut to its box."""
    from PIL import Image

    on_grey = np.where(found.mask[..., None], to_bytes(image_CHW), np.uint8(BACKGROUND))
    return Image.fromarray(on_grey).crop(tuple(round(side) for side in found.box))
