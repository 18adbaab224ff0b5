"""A flow-matching policy around SD3Transformer2DModel: what methods and evaluation call."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from bench.backbones.adapters import Adapters
from bench.backbones.conditioning import Conditioning
from bench.budget import Meter


class FlowBackbone(ABC, nn.Module):
    """Frozen transformer with LoRA adapters. Subclasses say how prompts are encoded and latents decoded."""

    latent_shape: tuple[int, int, int]
    """(C, h, w)."""

    def __init__(self, name: str, transformer: nn.Module, weights_hash: str, device: str):
        super().__init__()
        self.name, self.weights_hash, self.device = name, weights_hash, torch.device(device)
        self.transformer = transformer.requires_grad_(False).eval()
        self.adapters = Adapters(transformer)
        self.meter = Meter()
        self._encoded: dict[str, Conditioning] = {}

    @abstractmethod
    def _encode(self, prompt: str) -> Conditioning:
        """Encode one prompt."""

    @abstractmethod
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents -> pictures [B, 3, H, W], float32 in [0, 1]."""

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Prompts -> Conditioning on the device; every distinct prompt is encoded once in a backbone's life.

        One by one: in a batch the last bit depends on the company, and with it on what was encoded earlier, which is
        not the same in a resumed run.
        """
        for prompt in prompts:
            if prompt not in self._encoded:
                self._encoded[prompt] = self._encode(prompt)
        return Conditioning.cat([self._encoded[p] for p in prompts])

    def velocity(
        self,
        x: Tensor,
        sigma: float | Tensor,
        conditioning: Conditioning,
        adapter: str | None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Guided velocity at x [B, C, h, w] and sigma (scalar, or one per sample [B]), in float32.

        `adapter` None is the base. At guidance 1 one evaluation a sample, otherwise two, in one batch. Gradients
        reach the adapter if the caller has them enabled.
        """
        sigma_B = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        self.adapters.use(adapter)
        if guidance == 1.0:
            return self._forward(x, sigma_B, conditioning)
        empty = self.encode([""])
        both = Conditioning.cat([empty.repeat(len(x)), conditioning])
        v_uncond, v_cond = self._forward(x.repeat(2, 1, 1, 1), sigma_B.repeat(2), both).chunk(2)
        return v_uncond + guidance * (v_cond - v_uncond)

    def _forward(self, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        self.meter.count(len(x), torch.is_grad_enabled())
        dtype = self.transformer.dtype
        v = self.transformer(
            hidden_states=x.to(dtype),
            encoder_hidden_states=conditioning.sequence.to(dtype),
            pooled_projections=conditioning.pooled.to(dtype),
            timestep=1000 * sigma_B,
            return_dict=False,
        )[0]
        return v.float()

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents [count, C, h, w], drawn on the CPU so that they are the same on every device."""
        return torch.randn(count, *self.latent_shape, generator=generator).to(self.device)

    @property
    def latent_size(self) -> int:
        """Elements of one latent."""
        return math.prod(self.latent_shape)
