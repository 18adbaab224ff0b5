"""A published model at its real size with random weights, for measuring speed and memory.

Neither depends on the weights' values. Prompts are encoded as random embeddings, and its images mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.backbones.conditioning import Conditioning
from bench.backbones.pipeline.called import FamilyBackbone
from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.pipeline.source import Configuration
from bench.config.compute import PLAIN, Compute
from bench.hashing import seed_of, text_hash


class ShapeOnly(FamilyBackbone):
    """A family's network with random weights, created directly on the device, and no decoder."""

    def __init__(self, family: PipelineFamily, told: Configuration, device: str, compute: Compute = PLAIN):
        import diffusers

        dtype = getattr(torch, compute.precision)
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.device(device):
            torch.manual_seed(0)
            # Creating the weights in float32 first would double the peak memory.
            previous = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                network = getattr(diffusers, family.network).from_config(told.network)
            finally:
                torch.set_default_dtype(previous)
        self._of(family, told.fields, told.scheduler, device)
        self._told = told
        identity = text_hash([family.network, told.network])
        super().__init__(f"{family.name}_shape", network.to(dtype), identity, device, compute)
        side = self.latent_side(compute.resolution)
        self.latent_shape = (family.latent_channels(told.fields), side, side)

    def latent_side(self, resolution: int | None) -> int:
        """Latent pixels along one side of images of so many pixels, or by default. Raises UsageError for too many."""
        return self._told.checked_side(self.family, resolution, self.compute)

    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        shapes = self.family.prompt_shapes(self._fields, self.family.tokens(self.compute))
        for prompt in prompts:
            generator = torch.Generator().manual_seed(seed_of("shape", prompt))
            encoded = {name: torch.randn(1, *shape, generator=generator) for name, shape in shapes.items()}
            lengths = {name: (shapes[name][0],) for name in self.family.padded}
            yield Conditioning({name: t.to(self.device, self.dtype) for name, t in encoded.items()}, lengths)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Grey images [B, 3, H, W] of the right size."""
        side = self.latent_shape[1] * self.family.vae.downsampling(self._told.vae)
        count = len(latents_BCHW)
        return torch.full((count, 3, side, side), 0.5, device=self.device)
