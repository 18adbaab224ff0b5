"""PickScore itself: yuvalkirstain/PickScore_v1 with the processor it was trained with (arXiv 2305.01569)."""

from functools import cache, partial

import torch
from torch import Tensor

from bench.errors import MissingError
from bench.pictures import to_bytes
from bench.weights import load_processor
from tasks.pickscore.scorer import ClipScorer

MODEL, PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
BOUNDS = (0.0, 26.0)
"""Published recipes train on the score over 26."""
SOURCES = {
    "prompts": "folder with train.txt and test.txt, one prompt a line",
    "model": f"CLIP model; default {MODEL}",
    "processor": f"its tokenizer and image processor; default {PROCESSOR}",
    "device": "where it runs; default cpu",
}


def photo_scorer(sources: dict[str, str]) -> ClipScorer:
    """The scorer that `scorers.pickscore` describes."""
    processor = sources.get("processor", PROCESSOR)

    parts = cache(partial(load_processor, processor))

    def tokenise(texts: list[str]) -> dict[str, Tensor]:
        return dict(parts()[0](texts, padding=True, truncation=True, max_length=77, return_tensors="pt"))

    def prepare(images_BCHW: Tensor, side: int) -> Tensor:
        from PIL import Image

        pictures = [Image.fromarray(image) for image in to_bytes(images_BCHW)]
        pixels = parts()[1](images=pictures, return_tensors="pt")["pixel_values"]
        if pixels.shape[-2:] != (side, side):
            raise MissingError(f"the processor {processor!r} makes pictures of another size than the model's {side}")
        return torch.as_tensor(pixels)

    return ClipScorer(sources.get("model", MODEL), tokenise, prepare, BOUNDS, sources.get("device", "cpu"))
