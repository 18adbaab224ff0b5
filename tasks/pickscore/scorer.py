"""PickScore's formula on a CLIPModel: exp(logit_scale) * cosine(image, text) (arXiv 2305.01569)."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.errors import MissingError

Tokenise = Callable[[list[str]], dict[str, Tensor]]


class ClipScorer:
    """A CLIPModel folder in transformers' format, its preprocessing, and the range that maps scores to rewards."""

    def __init__(self, folder: Path, tokenise: Tokenise):
        self.folder, self.tokenise = folder, tokenise
        self._texts: dict[str, Tensor] = {}

    @cached_property
    def model(self):
        from transformers import CLIPModel
        from transformers.utils.logging import disable_progress_bar

        if not (self.folder / "config.json").is_file():
            raise MissingError(f"no preference model in {self.folder}; reinstall the package or train it")
        disable_progress_bar()  # its bar would tear ours
        return CLIPModel.from_pretrained(self.folder, dtype=torch.float32).eval().requires_grad_(False)

    @cached_property
    def range(self) -> tuple[float, float]:
        """Scores that map to reward 0 and 1."""
        calibration = json.loads((self.folder / "calibration.json").read_text())
        return calibration["low"], calibration["high"]

    @torch.no_grad()
    def text_embeddings(self, texts: list[str]) -> Tensor:
        """Normalised text embeddings [B, D]; every distinct text is encoded once."""
        new = [t for t in dict.fromkeys(texts) if t not in self._texts]
        if new:
            embedded = self.model.get_text_features(**self.tokenise(new)).pooler_output
            self._texts.update(zip(new, torch.nn.functional.normalize(embedded, dim=-1)))
        return torch.stack([self._texts[t] for t in texts])

    @torch.no_grad()
    def raw(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """PickScore as papers print it, float64 [B]."""
        pixels = normalise(images_BCHW.float().cpu(), self.model.config.vision_config.image_size)
        images = torch.nn.functional.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        scores = self.model.logit_scale.exp() * (images * self.text_embeddings(texts)).sum(-1)
        return scores.double().numpy()

    def reward(self, raw: np.ndarray) -> np.ndarray:
        """Scores mapped linearly to [0, 1] (published recipes: raw / 26, that is the range 0 to 26)."""
        low, high = self.range
        return ((raw - low) / (high - low)).clip(0, 1)


def normalise(images_BCHW: Tensor, side: int) -> Tensor:
    """CLIP's preprocessing: square bicubic resize where needed, then CLIP's mean and standard deviation."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    if images_BCHW.shape[-1] != side:
        images_BCHW = torch.nn.functional.interpolate(images_BCHW, (side, side), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (images_BCHW - mean) / std
