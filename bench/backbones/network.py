"""What a model family says of its networks so that passes through them are counted on shapes (bench/backbones/size.py).

This file imports no torch: what a run will cost is told of a descriptor, before anything loads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Network(ABC):
    """The network that predicts velocities, at one size of latents and one length of prompts.

    Subclasses are frozen dataclasses of what can be hashed: equal ones are counted once.
    """

    latent_side: int
    """Latent pixels a side."""
    targets: tuple[str, ...]
    """Layers that an adapter is put on where nobody says, as of the family's FlowBackbone."""

    @property
    @abstractmethod
    def latent_numbers(self) -> int:
        """Numbers of one latent."""

    @property
    @abstractmethod
    def prompt_numbers(self) -> int:
        """Numbers of one encoded prompt."""

    @abstractmethod
    def build(self) -> nn.Module:
        """The network on the meta device, in float32. Called with `inputs` and return_dict=False, as diffusers' are."""

    @abstractmethod
    def inputs(self, model: Any, latents: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the built network is called with for a batch; only shapes and types count."""


class Decoder(ABC):
    """What turns latents into pictures, at one size of latents. Subclasses as of Network."""

    @property
    @abstractmethod
    def picture_side(self) -> int:
        """Pixels a side."""

    @abstractmethod
    def build(self, tiled: bool) -> nn.Module:
        """The model on the meta device, in float32, with diffusers' `decode`."""

    @abstractmethod
    def inputs(self, model: Any, latents: int) -> Tensor:
        """What the built model decodes for a batch; only the shape counts."""
