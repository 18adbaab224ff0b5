"""PickScore's formula on a CLIPModel: exp(logit_scale) * cosine(image, text) (arXiv 2305.01569)."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bench.weights import load_frozen, weights_hash

Tokenise = Callable[[list[str]], dict[str, Tensor]]
Prepare = Callable[[Tensor, int], Tensor]
"""Pictures [B, 3, H, W] in [0, 1] and the model's side -> its pixel values."""


class ClipScorer:
    """A CLIPModel (folder in transformers' format, or hub id), its preprocessing, and the range that becomes [0, 1]."""

    def __init__(
        self, source: str, tokenise: Tokenise, prepare: Prepare, bounds: tuple[float, float], device: str = "cpu"
    ):
        self.source, self.tokenise, self.prepare, self.bounds, self.device = source, tokenise, prepare, bounds, device
        self._texts: dict[str, Tensor] = {}

    @cached_property
    def name(self) -> str:
        return f"clip-{weights_hash(self.source)}"

    @cached_property
    def model(self):
        from transformers import CLIPModel

        return load_frozen(CLIPModel, self.source, self.device, "preference model")

    @torch.no_grad()
    def text_embeddings(self, texts: list[str]) -> Tensor:
        """Normalised text embeddings [B, D]; every distinct text is encoded once."""
        new = [t for t in dict.fromkeys(texts) if t not in self._texts]
        if new:
            embedded = self.model.get_text_features(
                **{k: v.to(self.device) for k, v in self.tokenise(new).items()}
            ).pooler_output
            self._texts.update(zip(new, torch.nn.functional.normalize(embedded, dim=-1)))
        return torch.stack([self._texts[t] for t in texts])

    @torch.no_grad()
    def raw(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """PickScore as papers print it, float64 [B]."""
        pixels = self.prepare(images_BCHW.float().cpu(), self.model.config.vision_config.image_size).to(self.device)
        images = torch.nn.functional.normalize(self.model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        scores = self.model.logit_scale.exp() * (images * self.text_embeddings(texts)).sum(-1)
        return scores.double().cpu().numpy()

    def reward(self, raw: np.ndarray) -> np.ndarray:
        """Scores mapped linearly to [0, 1] (published recipes: raw / 26, that is the range 0 to 26)."""
        low, high = self.bounds
        return ((raw - low) / (high - low)).clip(0, 1)


def normalise(images_BCHW: Tensor, side: int) -> Tensor:
    """CLIP's preprocessing: square bicubic resize where needed, then CLIP's mean and standard deviation."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    if images_BCHW.shape[-1] != side:
        images_BCHW = torch.nn.functional.interpolate(images_BCHW, (side, side), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (images_BCHW - mean) / std
