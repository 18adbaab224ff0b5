"""Features of photographs: image embeddings of CLIP ViT-L/14, the model that also judges GenEval's colours."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from bench.api.features import FeatureSpace
from bench.errors import MissingError
from tasks.clip import BATCH, Clip, cropped, devices, with_processor

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "openai/clip-vit-large-patch14"


class PhotoFeatures(FeatureSpace):
    """Unit image embeddings of a CLIPModel, compared by their cosine."""

    sources: ClassVar[dict[str, str]] = {
        "model": f"CLIP model whose image embeddings measure diversity; default {MODEL}",
        **devices(BATCH),
    }

    @cached_property
    def clip(self) -> Clip:
        """The CLIP model with the resizing and cropping of CLIPScore; its weights are loaded at first use."""
        model = self.given.get("model", MODEL)
        return with_processor(model, model, self.given, cropped)

    @cached_property
    def name(self) -> str:
        """Hash of the weights. Raises MissingError, naming the setting, if they cannot be found."""
        try:
            return f"clip-{self.clip.name}"
        except MissingError as error:
            cure = "set scorers.features.model to a folder or hub id of a CLIP model, or to none to leave diversity out"
            raise MissingError(f"the diversity of photographs cannot be measured: {error}; {cure}") from error

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Unit embeddings [B, D]."""
        return self.clip.images(images_BCHW)
