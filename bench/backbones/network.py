"""What a model family implements so that compute is counted from shapes (bench/backbones/size.py).

This file does not import torch: a run's cost is predicted from a descriptor before anything is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from bench.errors import UsageError, one_line
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class Network(ABC):
    """The network that predicts velocities, at one latent size and one prompt length.

    Subclasses are frozen dataclasses with hashable fields, since results are cached per network.
    """

    latent_side: int
    """Latent pixels along one side."""
    targets: tuple[str, ...]
    """Default layers to adapt, the same as in the family's FlowBackbone."""

    @property
    @abstractmethod
    def latent_numbers(self) -> int:
        """Number of elements in one latent."""

    @property
    @abstractmethod
    def prompt_numbers(self) -> int:
        """Number of elements in one encoded prompt."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the network on the meta device, in float32.

        It is called as diffusers' models are, with `inputs` as keyword arguments and return_dict=False.
        """

    @abstractmethod
    def inputs(self, model: Any, latents: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Arguments of the built network for a batch of `latents`; only their shapes and types matter."""


class Decoder(ABC):
    """The decoder from latents to images, at one latent size. Subclasses are frozen dataclasses, as for Network."""

    @property
    @abstractmethod
    def picture_side(self) -> int:
        """Image pixels along one side."""

    @abstractmethod
    def build(self, tiled: bool) -> nn.Module:
        """Build the model on the meta device, in float32, with diffusers' `decode`; `tiled` decodes in tiles."""

    @abstractmethod
    def inputs(self, model: Any, latents: int) -> Tensor:
        """Argument of the built model's `decode` for a batch of `latents`; only its shape matters."""


def of_shape(kind: str, config: dict[str, Any]) -> Any:
    """A model of a class of diffusers on the meta device. Raises UsageError for a configuration that describes none."""
    import diffusers

    try:
        with torch.device("meta"):
            return getattr(diffusers, kind).from_config(config)
    except Exception as error:  # from impossible values, a class of diffusers can raise almost anything
        raise UsageError(f"config.json of the {kind} describes no model: {one_line(error)}") from error
