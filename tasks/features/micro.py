"""Features and attributes of the drawn worlds' images: the codec's latents, and what captions leave open."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.features import FeatureSpace
from bench.backbones.micro.reader import grounds_of, views
from bench.backbones.micro.world import COLOURS
from bench.backbones.micro.worlds import DRAWN, DrawnWorld

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api.task import Prompt
    from bench.backbones.micro.codec import PatchCodec

NOTHING = "nothing"
"""Label of an image without a recognised shape, where one is expected."""


class MicroFeatures(FeatureSpace):
    """Latents of the world's own codec (PCA of patches, partly whitened), whose mean square is 1 over its images."""

    cosine = False
    world: ClassVar[DrawnWorld] = DRAWN["micro"]

    @property
    def name(self) -> str:
        """The world's codec and the version of the measures."""
        return f"{self.world.name}-codec-1"

    @cached_property
    def codec(self) -> PatchCodec:
        """The codec that comes with the base's weights; it is never trained."""
        from safetensors.torch import load_file

        from bench.backbones.micro.codec import PatchCodec

        codec = PatchCodec()
        codec.load_state_dict(load_file(self.world.require(self.world.base / "codec.safetensors")))
        return codec.requires_grad_(False)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Latents as vectors, [B, 1024]."""
        return self.codec.encode(images_BCHW.float().cpu()).flatten(1)

    def attributes(self, images_BCHW: Tensor, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        """Labels of four attributes (the ground's colour is never in a caption, the others not in a sign's).

        - ground: the palette entry that most pixels are nearest to.
        - distance: near, distant or nothing.
        - placement: the blocks of all shapes.
        - colour: of the first shape in reading order, where the caption names no colour.
        """
        labels: dict[str, list[str]] = {name: [] for name in ("ground", "distance", "placement", "colour")}
        found = views(images_BCHW, self.world.shapes)
        for prompt, ground, (view, marks) in zip(prompts, grounds_of(images_BCHW), found, strict=True):
            seen = sorted((mark.top, mark.left, mark.colour) for mark in marks)
            labels["ground"].append(ground)
            if '"' in prompt.text:  # a sign has no shapes, and its characters have their places
                for name in ("distance", "placement", "colour"):
                    labels[name].append("")
                continue
            labels["distance"].append(view or NOTHING)
            labels["placement"].append(" ".join(f"{left},{top}" for top, left, _ in seen) or NOTHING)
            told = any(word in COLOURS for word in prompt.text.split())
            labels["colour"].append("" if told else seen[0][2] if seen else NOTHING)
        return {name: np.array(given) for name, given in labels.items()}


class Study1Features(MicroFeatures):
    """The same in the study's first world, with its codec and shapes."""

    world = DRAWN["study-1"]


class Study2Features(MicroFeatures):
    """The same in the study's second world, with its codec and shapes."""

    world = DRAWN["study-2"]


class Study3Features(MicroFeatures):
    """The same in the study's third world, with its codec and shapes."""

    world = DRAWN["study-3"]
