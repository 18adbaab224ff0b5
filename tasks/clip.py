"""CLIP for all scorers: unit embeddings of images and texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.errors import MissingError, UsageError
from bench.lazy import torch, without_gradients
from bench.scoring.pictures import to_bytes
from bench.weights.frozen import load_frozen, load_processor, weights_name
from tasks.resizing import with_gradient_of

if TYPE_CHECKING:
    from torch import Tensor

Tokenise = Callable[[list[str]], dict[str, "Tensor"]]
Pictures: TypeAlias = "Tensor | list"
"""A tensor [B, 3, H, W] in [0, 1], or a list of PIL images, which may differ in size."""
Prepare = Callable[[Pictures, int], "Tensor"]
"""(Images, side of the model's input) -> pixel values [B, 3, side, side]."""
DEVICES = {
    "device": "device of the scorer; default: that of the run",
    "precision": "float32 (default), bfloat16 or float16",
    "batch": "images per forward of the scorer; default {}",
}
"""Settings that every scorer with a network accepts."""
BATCH = 64
"""Images per forward, unless the scorer has its own default."""


def devices(batch: int) -> dict[str, str]:
    """DEVICES with `batch` as the default batch size in the help text."""
    return DEVICES | {"batch": DEVICES["batch"].format(batch)}


def placed(sources: dict[str, str], batch: int) -> dict[str, Any]:
    """Device, precision and batch from `sources`, as keyword arguments. Raises UsageError for an invalid batch."""
    how: dict[str, Any] = {key: sources[key] for key in ("device", "precision") if key in sources}
    asked = sources.get("batch", str(batch))
    if not asked.isdecimal() or not int(asked):
        raise UsageError(f"a scorer's batch is a number of images, at least 1, not {asked!r}")
    return how | {"batch": int(asked)}


@cache
def _loaded(source: str, device: str, precision: str):
    """The CLIPModel of `source`. GenEval's judge of colours, CLIPScore and the diversity have the same by default."""
    from transformers import CLIPModel

    return load_frozen(CLIPModel, source, device, "CLIP model", precision)


class Clip:
    """A CLIPModel (a folder in transformers' format, or a hub id) with its preprocessing. Texts are embedded once."""

    def __init__(
        self, source: str, tokenise: Tokenise, prepare: Prepare, device: str = "cpu", precision: str = "float32",
        batch: int | None = None, through_pil: bool = False,
    ):  # fmt: skip
        """`batch` None: each call is one forward, whatever its number of images.

        `through_pil`: whether `prepare` passes through PIL images, where gradients end.
        """
        self.source, self.tokenise, self.prepare = source, tokenise, prepare
        self.device, self.precision, self.batch, self.through_pil = device, precision, batch, through_pil
        self._texts: dict[str, Tensor] = {}

    @cached_property
    def name(self) -> str:
        """Hash of the weights, and the precision if it is not float32."""
        return weights_name(self.source, self.precision)

    @cached_property
    def model(self):
        """The CLIPModel, loaded at first use, once for all scorers that use it."""
        return _loaded(self.source, self.device, self.precision)

    @without_gradients
    def texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings [B, D] of texts, float32. Every distinct text is encoded once."""
        new = [t for t in dict.fromkeys(texts) if t not in self._texts]
        if new:
            tokens = {key: value.to(self.device) for key, value in self.tokenise(new).items()}
            embedded = self.model.get_text_features(**tokens).pooler_output.float()
            unit = torch.nn.functional.normalize(embedded, dim=-1)
            self._texts.update(zip(new, unit))
        return torch.stack([self._texts[t] for t in texts])

    @without_gradients
    def images(self, pictures: Pictures) -> Tensor:
        """Unit embeddings [B, D] of images, float32."""
        return self._embedded(pictures, self.prepare)

    def _embedded(self, pictures: Pictures, prepare: Prepare) -> Tensor:
        side = self.model.config.vision_config.image_size
        size = self.batch or len(pictures)
        found = []
        for start in range(0, len(pictures), size):
            pixels = prepare(pictures[start : start + size], side)
            pixels = pixels.to(self.device, self.model.dtype)
            embedded = self.model.get_image_features(pixel_values=pixels).pooler_output.float()
            found.append(torch.nn.functional.normalize(embedded, dim=-1))
        return torch.cat(found)

    @without_gradients
    def cosines(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """Cosine similarity of every image with its text, [B], float32."""
        return (self.images(images_BCHW) * self.texts(texts)).sum(-1)

    def differentiable_images(self, images_BCHW: Tensor) -> Tensor:
        """The same as `images`, with gradients to the images."""
        return self._embedded(images_BCHW, self._straight_through if self.through_pil else self.prepare)

    def differentiable_cosines(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """The same as `cosines`, with gradients to the images."""
        return (self.differentiable_images(images_BCHW) * self.texts(texts)).sum(-1)

    def _straight_through(self, images_BCHW: Pictures, side: int) -> Tensor:
        """The pixel values that PIL gives, with the gradients of the same resizing and cropping of tensors."""
        assert isinstance(images_BCHW, torch.Tensor)  # only tensors have gradients
        return with_gradient_of(cropped(images_BCHW, side, "bicubic"), self.prepare(images_BCHW.detach(), side))

    @property
    def scale(self) -> float:
        """Factor from cosine to logit: exp(logit_scale), close to 100 in trained CLIPs."""
        return float(self.model.logit_scale.detach().float().exp())


def with_processor(model: str, processor: str, sources: dict[str, str], prepare: Prepare | None = None) -> Clip:
    """A CLIP with a tokenizer and image processor from the hub or a folder; `prepare` replaces the image processor.

    `sources` may set device, precision and batch. Raises MissingError, when images are embedded, if the processor's
    size is not the model's.
    """
    # Loaded at first use: tasks are built for their prompts alone too.
    parts = cache(partial(load_processor, processor))

    def tokenise(texts: list[str]) -> dict[str, Tensor]:
        tokenizer = parts()[0]
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        return dict(tokens)

    def processed(pictures: Pictures, side: int) -> Tensor:
        from PIL import Image

        if isinstance(pictures, torch.Tensor):
            pictures = [Image.fromarray(image) for image in to_bytes(pictures)]
        pixels = parts()[1](images=pictures, return_tensors="pt")["pixel_values"]
        if pixels.shape[-2:] != (side, side):
            raise MissingError(
                f"the processor {processor!r} does not resize images to the model's {side} x {side} pixels"
            )
        return torch.as_tensor(pixels)

    return Clip(model, tokenise, prepare or processed, **placed(sources, BATCH), through_pil=prepare is None)


def cropped(images_BCHW: Pictures, side: int, mode: str = "bilinear") -> Tensor:
    """Resize the short edge to `side`, crop the central square and `standardise` it: [B, 3, side, side].

    Antialiased, as torchvision's Resize and CenterCrop do on tensors.
    """
    assert isinstance(images_BCHW, torch.Tensor)  # no caller passes PIL images here
    size, (top, left) = central_square(images_BCHW.shape[-2], images_BCHW.shape[-1], side)
    images_BCHW = images_BCHW.float().cpu()
    if images_BCHW.shape[-2:] != size:
        images_BCHW = torch.nn.functional.interpolate(images_BCHW, size, mode=mode, antialias=True)
    return standardise(images_BCHW[..., top : top + side, left : left + side], side, mode)


def central_square(height: int, width: int, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size (height, width) of an image whose short edge is resized to `side`, and the crop's corner (top, left).

    As in torchvision's Resize and CenterCrop.
    """
    # torchvision truncates the long edge and rounds the offsets of the crop.
    long = int(side * max(height, width) / min(height, width))
    size = (side, long) if height <= width else (long, side)
    return size, (round((size[0] - side) / 2), round((size[1] - side) / 2))


def standardise(images_BCHW: Tensor, side: int, mode: str) -> Tensor:
    """Resize to a square if needed (antialiased), then `normalise`: [B, 3, side, side]."""
    images_BCHW = images_BCHW.float().cpu()
    size = (side, side)
    if images_BCHW.shape[-2:] != size:
        images_BCHW = torch.nn.functional.interpolate(images_BCHW, size, mode=mode, antialias=True)
    return normalise(images_BCHW)


def normalise(images_BCHW: Tensor) -> Tensor:
    """Images on the CPU, standardised with CLIP's mean and standard deviation of each channel."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    mean = torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)
    return (images_BCHW - mean) / std
