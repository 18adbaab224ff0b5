"""A flow-matching policy around a frozen network with LoRA adapters: the interface of methods and evaluation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.backbones.adapters import Adapters
from bench.backbones.conditioning import Conditioning
from bench.backbones.embeddings import Embeddings
from bench.backbones.meter import Meter
from bench.backbones.sharding import is_split, shard
from bench.backbones.size import Size
from bench.config.compute import Compute
from bench.errors import UsageError
from bench.sampler.draws import normal
from bench.sampler.parts import parts

if TYPE_CHECKING:
    from diffusers.models import ModelMixin

AHEAD = 256
"""Prompts that are encoded ahead: 450 MB for SD3.5 with T5 in half precision, which the cache in memory can keep."""
COMPILATIONS = 64
"""Limit on compiled versions per block: torch.compile makes one per adapter, gradient mode and input shape."""


class FlowBackbone(ABC, nn.Module):
    """A frozen network with LoRA adapters.

    Subclasses implement the network call, the encoding of prompts, and the conversion between latents and images.
    """

    latent_shape: tuple[int, int, int]
    """Shape of one latent, (C, h, w)."""
    targets: tuple[str, ...]
    """Suffixes of the names of the layers to adapt, unless a spec names others."""

    def __init__(
        self,
        name: str,
        transformer: nn.Module,
        weights_hash: str,
        device: str,
        compute: Compute,
        cache: Path | None = None,
    ):
        """`transformer` must already be at compute.precision; `cache` is a folder for encoded prompts, if any."""
        super().__init__()
        self.name, self.weights_hash, self.device = name, weights_hash, torch.device(device)
        self.source = name  # a subclass that is not shipped with the package sets its path or hub address
        self.compute, self.dtype = compute, getattr(torch, compute.precision)
        self.transformer = transformer.requires_grad_(False).eval()
        self.sharded = is_split(compute)
        """Whether the frozen weights are split over processes, which must then make the same number of passes."""
        self.adapters = Adapters(transformer, self.targets)
        self.meter = Meter()
        self._encoded = Embeddings(cache, self.device)
        if compute.gradient_checkpointing:
            cast("ModelMixin", transformer).enable_gradient_checkpointing(self._checkpointed)
        if compute.compile:
            torch._dynamo.config.recompile_limit = COMPILATIONS
            for block in self.blocks():
                block.compile()
        if self.sharded:
            shard(transformer, self.blocks(), self.device)

    def _checkpointed(self, block: nn.Module, *args) -> Tensor:
        """Checkpoint a block so that its recomputation in the backward pass runs under the adapter of its forward.

        By then, another adapter, such as the teacher's, may be selected.
        """
        return checkpoint(self.adapters.bound(block), *args, use_reentrant=False)

    def blocks(self) -> list[nn.Module]:
        """Repeated blocks of the network, which compute.compile compiles one by one. Default: none."""
        return []

    @abstractmethod
    def predict(self, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's velocity eps - x0 at x [B, C, h, w] = (1 - sigma) x0 + sigma eps, without guidance.

        `sigma_B` is [B]; the result is [B, C, h, w]. Called under autocast at compute.precision; may return any
        floating-point type.
        """

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        """Encode prompts one by one, yielding a batch of one for each.

        In a larger batch the result would depend, in its last bits, on the other prompts. Those depend on what is
        already cached, which differs in a resumed run.
        """

    @abstractmethod
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W], float32 in [0, 1]."""

    def encode_pictures(self, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents [B, C, h, w], for methods that train on given images.

        Raises UsageError unless the backbone implements it.
        """
        raise UsageError(f"backbone {self.name!r} cannot encode images: it does not implement encode_pictures")

    def size(self, conditioning: Conditioning) -> Size:
        """Size of the network alone, for prompts as long as these; compute is counted from it.

        Raises UsageError unless the backbone implements it.
        """
        raise UsageError(f"the compute of backbone {self.name!r} cannot be counted: it does not implement size")

    @torch.no_grad()
    def encode(self, prompts: list[str], ahead: Iterable[str] = ()) -> Conditioning:
        """Encode prompts to a Conditioning on the device, one entry per prompt, reusing cached ones.

        `ahead` are prompts that will be asked for next. If text encoders must be moved to the device now, they
        also encode up to AHEAD of those, so that they are moved more rarely.
        """
        known = {prompt: self._encoded.get(prompt) for prompt in dict.fromkeys(prompts)}
        # A second lookup could miss: storing a prompt may evict another that this batch still needs.
        found = {prompt: encoded for prompt, encoded in known.items() if encoded is not None}
        new = [prompt for prompt in known if prompt not in found]
        if new:
            if self.compute.offload_text_encoders:
                later = dict.fromkeys(islice(ahead, AHEAD))
                new += [prompt for prompt in later if prompt not in known and not self._encoded.has(prompt)]
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
        """Guided velocity [B, C, h, w] in float32 at x [B, C, h, w] and sigma (a scalar, or [B]).

        `adapter` None is the base. The network is called once per sample at guidance scale 1 and twice otherwise, in
        one batch. Gradients reach the adapter if the caller has them enabled.
        """
        if isinstance(sigma, Tensor):
            sigma_B = sigma.to(x.device, torch.float32).expand(len(x))
        else:  # filled on the device: copying a number there would wait for it
            sigma_B = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        self.adapters.use(adapter)
        # Without gradients, compute.batch bounds memory. With them, splitting would save none: the graph keeps all.
        size = len(x) if torch.is_grad_enabled() else self.compute.batch or len(x)
        slices = parts(range(len(x)), size)
        made = [self._guided(x[part], sigma_B[part], conditioning[part], guidance) for part in slices]
        return made[0] if len(made) == 1 else torch.cat(made)

    def _guided(self, x: Tensor, sigma_B: Tensor, conditioning: Conditioning, guidance: float) -> Tensor:
        if guidance == 1.0:
            return self._forward(x, sigma_B, conditioning)
        empty = self.encode([""])
        both = Conditioning.cat([empty.repeat(len(x)), conditioning])
        velocities = self._forward(x.repeat(2, 1, 1, 1), sigma_B.repeat(2), both)
        v_uncond, v_cond = velocities.chunk(2)
        # Classifier-free guidance (arXiv 2207.12598).
        return v_uncond + guidance * (v_cond - v_uncond)

    def _forward(self, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        self.meter.count(len(x), torch.is_grad_enabled())
        reduced = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=reduced):
            return self.predict(x, sigma_B, conditioning).float()

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents [count, C, h, w] on the backbone's device; see `normal` in bench/sampler/draws.py."""
        return normal((count, *self.latent_shape), generator, self.device)

    @cached_property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels, found by decoding one latent."""
        with torch.no_grad():
            height, width = self.decode(torch.zeros(1, *self.latent_shape, device=self.device)).shape[-2:]
        return height, width

    @property
    def latent_size(self) -> int:
        """Number of elements in one latent."""
        return math.prod(self.latent_shape)
