"""The size of a pipeline's network and VAE, counted from its configurations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from bench.backbones.conditioning import Conditioning
from bench.backbones.network import Network, of_shape
from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.pipeline.source import validated
from bench.backbones.size import Size
from bench.backbones.vae import VaeDecoder
from bench.lazy import torch
from bench.registry import guarded

if TYPE_CHECKING:
    from torch import Tensor, nn

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of each tensor of an encoded prompt, without the batch."""


@dataclass(frozen=True)
class PipelineNetwork(Network):
    """A family's network at one latent size and one prompt length."""

    family: PipelineFamily
    config: str
    """The network's configuration as JSON, because instances must be hashable."""
    latent_side: int
    prompt: Shapes

    @property
    def targets(self) -> tuple[str, ...]:  # type: ignore[override]  # a dataclass has no room for the class's
        """The family's."""
        return self.family.targets

    @property
    def latent_numbers(self) -> int:
        """Number of elements in one latent."""
        return self.family.latent_channels(self._fields) * self.latent_side**2

    @property
    def prompt_numbers(self) -> int:
        """Number of elements in one encoded prompt."""
        return sum(prod(shape) for _, shape in self.prompt)

    def build(self) -> nn.Module:
        """The network on the meta device."""
        return of_shape(self.family.network, json.loads(self.config))

    def inputs(self, model: Any, latents: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Empty arguments of the network for a batch of `latents`."""
        channels, side = self.family.latent_channels(self._fields), self.latent_side
        x = torch.empty(latents, channels, side, side, dtype=dtype)
        tensors = {name: torch.empty(latents, *shape, dtype=dtype) for name, shape in self.prompt}
        lengths = {name: (tensors[name].shape[1],) * latents for name in self.family.padded}
        if self.family.embedded_guidance(self._fields):
            tensors["guidance"] = torch.empty(latents)
        given = Conditioning(tensors, lengths)
        return guarded("family", self.family.name, self.family.arguments, self._fields, x, torch.empty(latents), given)

    @property
    def _fields(self) -> Any:
        return _fields(self.family, self.config)


def pipeline_size(
    family: PipelineFamily,
    config: dict[str, Any],
    latent_side: int,
    prompt: dict[str, tuple[int, ...]],
    frozen: dict[str, int],
    vae: dict[str, Any] | None = None,
) -> Size:
    """Size of a network with configuration `config`, for prompts with tensors of these shapes (without the batch).

    `frozen` are the parameter counts of text encoders and VAE; `vae` is the VAE's configuration, None to leave decoding
    uncounted.
    """
    # Keys with an underscore, such as the path a model was loaded from, must not make equal networks differ.
    told = {name: value for name, value in config.items() if not name.startswith("_")}
    network = PipelineNetwork(family, json.dumps(told, sort_keys=True), latent_side, tuple(sorted(prompt.items())))
    decoder = None
    if vae is not None:
        decoder = VaeDecoder(family.vae, json.dumps(vae, sort_keys=True), latent_side)
    return Size(network, frozen, decoder)


@cache
def _fields(family: PipelineFamily, config: str) -> Any:
    return validated(family.folder, json.loads(config), family.fields)
