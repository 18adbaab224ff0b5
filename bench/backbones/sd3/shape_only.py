"""SD3.5-Medium's transformer at its real size with random weights, for measuring speed and memory.

Neither depends on the weights' values. Prompts are encoded as random embeddings, and its images mean nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.backbones.conditioning import Conditioning
from bench.backbones.sd3.files import CLIP_TOKENS, MAX_TEXT_TOKENS, MEDIUM, latent_side
from bench.backbones.sd3.transformer import Sd3Transformer
from bench.config.compute import PLAIN, Compute
from bench.hashing import seed_of, text_hash

DOWNSAMPLING = 8


class ShapeOnly(Sd3Transformer):
    """An SD3 transformer with random weights, created directly on the device, and no decoder."""

    def __init__(self, device: str, compute: Compute = PLAIN, cache: Path | None = None, config: dict = MEDIUM):
        from diffusers.models import SD3Transformer2DModel

        dtype = getattr(torch, compute.precision)
        with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.device(device):
            torch.manual_seed(0)
            # Creating the weights in float32 first would double the peak memory.
            previous = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                transformer = SD3Transformer2DModel(**config)
            finally:
                torch.set_default_dtype(previous)
        super().__init__("sd35_shape", transformer.to(dtype), text_hash(config), device, compute)
        side = latent_side(compute.resolution, transformer.config, DOWNSAMPLING)
        self.latent_shape = (transformer.config.in_channels, side, side)

    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        config, tokens = self.transformer.config, CLIP_TOKENS + MAX_TEXT_TOKENS
        for prompt in prompts:
            generator = torch.Generator().manual_seed(seed_of("shape", prompt))
            sequence = torch.randn(1, tokens, config["joint_attention_dim"], generator=generator)
            pooled = torch.randn(1, config["pooled_projection_dim"], generator=generator)
            encoded = {"sequence": sequence, "pooled": pooled}
            yield Conditioning({name: t.to(self.device, self.dtype) for name, t in encoded.items()})

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Grey images [B, 3, H, W] of the right size."""
        count, side = len(latents_BCHW), DOWNSAMPLING * self.latent_shape[1]
        return torch.full((count, 3, side, side), 0.5, device=self.device)
