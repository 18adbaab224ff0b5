"""A flow-matching policy around a frozen network with LoRA adapters: what methods and evaluation call."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.backbones.adapters import Adapters
from bench.backbones.conditioning import Conditioning
from bench.backbones.embeddings import Embeddings
from bench.backbones.meter import Meter
from bench.backbones.size import Size
from bench.config.compute import Compute
from bench.errors import UsageError
from bench.sampler.draws import normal

if TYPE_CHECKING:
    from diffusers.models import ModelMixin

COMPILATIONS = 64
"""Versions of a block that torch.compile may keep: one for every adapter, with and without gradients, and shape."""


class FlowBackbone(ABC, nn.Module):
    """A frozen network with LoRA adapters. Subclasses say how it is called, how prompts are encoded, and how latents
    and pictures turn into one another."""

    latent_shape: tuple[int, int, int]
    """(C, h, w)."""
    targets: tuple[str, ...]
    """Layers that the student's adapter is put on where a spec does not say: ends of their names."""

    def __init__(
        self,
        name: str,
        transformer: nn.Module,
        weights_hash: str,
        device: str,
        compute: Compute,
        cache: Path | None = None,
    ):
        """`transformer` is loaded at compute.precision."""
        super().__init__()
        self.name, self.weights_hash, self.device = name, weights_hash, torch.device(device)
        self.source = name  # its path or hub address, of one that does not come with the package
        self.compute, self.dtype = compute, getattr(torch, compute.precision)
        self.transformer = transformer.requires_grad_(False).eval()
        self.adapters = Adapters(transformer, self.targets)
        self.meter = Meter()
        self._encoded = Embeddings(cache, self.device)
        if compute.gradient_checkpointing:
            cast("ModelMixin", transformer).enable_gradient_checkpointing(self._checkpointed)
        if compute.compile:
            torch._dynamo.config.recompile_limit = COMPILATIONS
            for block in self.blocks():
                block.compile()

    def _checkpointed(self, block: nn.Module, *args) -> Tensor:
        """A block whose second forward, in the backward pass, runs under the adapter of its first: by then the teacher
        may be the current one."""
        return checkpoint(self.adapters.bound(block), *args, use_reentrant=False)

    def blocks(self) -> list[nn.Module]:
        """Repeated parts of the network, which compute.compile compiles one by one. Default: none."""
        return []

    @abstractmethod
    def predict(self, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's velocity eps - x0 at x [B, C, h, w] = (1 - sigma) x0 + sigma eps, without guidance.

        Called under autocast at compute.precision; may return any float type.
        """

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        """Encode prompts one by one: in a batch the last bit depends on the company, and with it on what was encoded
        earlier, which is not the same in a resumed run."""

    @abstractmethod
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents -> pictures [B, 3, H, W], float32 in [0, 1]."""

    def encode_pictures(self, images_BCHW: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] -> latents [B, C, h, w], for methods that learn from given pictures.

        Raises UsageError where the backbone has no encoder.
        """
        raise UsageError(f"backbone {self.name!r} does not say how pictures become latents")

    def size(self, conditioning: Conditioning) -> Size:
        """Of the network alone, with prompts as these, for whom passes are counted.

        Raises UsageError where the backbone does not say how its network is built.
        """
        raise UsageError(f"backbone {self.name!r} does not say how its network is built")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Conditioning:
        """Prompts -> Conditioning on the device; every distinct prompt is encoded once while it is remembered."""
        known = {prompt: self._encoded.get(prompt) for prompt in dict.fromkeys(prompts)}
        found = {prompt: encoded for prompt, encoded in known.items() if encoded is not None}
        new = [prompt for prompt in known if prompt not in found]
        if new:
            for prompt, encoded in zip(new, self._encode(new), strict=True):
                self._encoded.put(prompt, encoded)
                found[prompt] = encoded
        return Conditioning.cat([found[prompt] for prompt in prompts])

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
        size = len(x) if torch.is_grad_enabled() else self.compute.batch or len(x)
        parts = [
            self._guided(x[part], sigma_B[part], conditioning[part], guidance)
            for part in (slice(start, start + size) for start in range(0, len(x), size))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _guided(self, x: Tensor, sigma_B: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        if guidance == 1.0:
            return self._forward(x, sigma_B, conditioning)
        empty = self.encode([""])
        both = Conditioning.cat([empty.repeat(len(x)), conditioning])
        v_uncond, v_cond = self._forward(x.repeat(2, 1, 1, 1), sigma_B.repeat(2), both).chunk(2)
        return v_uncond + guidance * (v_cond - v_uncond)

    def _forward(self, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        self.meter.count(len(x), torch.is_grad_enabled())
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.predict(x, sigma_B, conditioning).float()

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents [count, C, h, w], the same on every device."""
        return normal((count, *self.latent_shape), generator).to(self.device)

    @property
    def latent_size(self) -> int:
        """Elements of one latent."""
        return math.prod(self.latent_shape)
