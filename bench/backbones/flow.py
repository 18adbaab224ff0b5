"""A flow-matching policy around a frozen network with LoRA adapters: the interface of methods and evaluation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.backbones import half_precision
from bench.backbones.adapters import Adapters
from bench.backbones.conditioning import Conditioning
from bench.backbones.embeddings import Embeddings
from bench.backbones.guidance import classifier_free
from bench.backbones.meter import Meter
from bench.backbones.sharding import is_split, shard
from bench.backbones.size import Size
from bench.backbones.whole_models import WholeModels, read_network
from bench.config.compute import Compute
from bench.errors import UsageError, one_line
from bench.sampler.draws import normal
from bench.sampler.parts import parts

if TYPE_CHECKING:
    from diffusers.models import ModelMixin

NEGATIVE = "\0negative prompt: "
"""Start of a negative prompt's key among encoded prompts, which no prompt has."""
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
    folder: str = "transformer"
    """Folder of the network in a pipeline of diffusers: transformer or unet."""
    embedded_guidance: bool = False
    """Whether the network takes the guidance scale as an input, which `predict` then finds in the conditioning as
    `guidance` [B]. The descriptor says the same."""

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
        self.adapters = Adapters(transformer, self.targets, self.folder)
        self.models = WholeModels(self.device, compute.offload_teachers)
        self._kind = type(transformer)  # FSDP2 replaces the class
        self.meter = Meter()
        self._encoded = Embeddings(cache, self.device)
        if compute.gradient_checkpointing:
            cast("ModelMixin", transformer).enable_gradient_checkpointing(self._checkpointed)
        self._prepared(transformer)
        if self.sharded:
            shard(transformer, self.blocks(transformer), self.device)

    def _prepared(self, network: nn.Module) -> None:
        """Spare a network in half precision some tensors, and compile its blocks if compute.compile asks for it."""
        if self.dtype != torch.float32:
            half_precision.prepare(network)
        if self.compute.compile:
            torch._dynamo.config.recompile_limit = COMPILATIONS
            for block in self.blocks(network):
                block.compile()

    def exact_weights(self) -> dict[str, Tensor] | None:
        """The network's parameters by name as its files have them, in host memory; None if they are not read again.

        A student with all weights starts from them where compute.precision rounded those in use.
        """
        return None

    def load_model(self, name: str, folder: Path) -> None:
        """Load a whole network, in a folder in diffusers' format; `velocity` takes its name like an adapter's.

        It may differ from the own network in size, but takes the same latents and prompts, and has its class. Raises as
        `read_network`, and UsageError for a network that does not fit.
        """

        def place(network: nn.Module) -> None:
            if self.sharded:
                shard(network, self.blocks(network), self.device)
            else:
                network.to(self.device)

        network = read_network(self._kind, folder, self.dtype)
        self._prepared(network)
        self.models.add(name, network, place)
        x = torch.zeros(1, *self.latent_shape, device=self.device)
        conditioning = self.encode([""])
        try:
            with torch.no_grad():
                velocity = self.velocity(x, 0.5, conditioning, name)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError) as error:  # of shapes, arguments, positions
            cause = one_line(error)
            raise UsageError(f"{folder} does not take this backbone's latents and prompts: {cause}") from error
        if velocity.shape != x.shape:
            raise UsageError(f"{folder} predicts latents of shape {tuple(velocity.shape[1:])}, not {self.latent_shape}")
        if not velocity.isfinite().all():
            raise UsageError(f"{folder} predicts values that are not finite: its weights are damaged")

    def _checkpointed(self, block: nn.Module, *args) -> Tensor:
        """Checkpoint a block so that its recomputation in the backward pass runs under the adapter of its forward.

        By then, another adapter, such as the teacher's, may be selected.
        """
        return checkpoint(self.adapters.bound(block), *args, use_reentrant=False)

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """Repeated blocks of a network of this family, which compute.compile compiles one by one. Default: none."""
        return []

    @abstractmethod
    def predict(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """A network's velocity eps - x0 at x [B, C, h, w] = (1 - sigma) x0 + sigma eps, without guidance.

        `network` is `self.transformer`, or a teacher that is a whole model. `sigma_B` is [B]; the result is
        [B, C, h, w]. Called under autocast at compute.precision; may return any floating-point type.
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

    @torch.no_grad()
    def negative(self) -> Conditioning:
        """The encoding of what classifier-free guidance guides away from, compute.negative_prompt, one entry."""
        words = self.compute.negative_prompt
        # A family may encode it in another way than a prompt with the same words.
        key = NEGATIVE + words
        if (encoded := self._encoded.get(key)) is None:
            encoded = self._encode_negative(words)
            self._encoded.put(key, encoded)
        return encoded

    def _encode_negative(self, prompt: str) -> Conditioning:
        """Encode a negative prompt. Default: as a prompt."""
        (encoded,) = self._encode([prompt])
        return encoded

    def velocity(
        self,
        x: Tensor,
        sigma: float | Tensor,
        conditioning: Conditioning,
        adapter: str | None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Guided velocity [B, C, h, w] in float32 at x [B, C, h, w] and sigma (a scalar, or [B]).

        `adapter` None is the base; it may also name a whole model (`load_model`). The network is called once per sample
        at guidance scale 1, or if it takes the scale as an input, and else twice, in one batch. Gradients reach the
        adapter if the caller has them enabled.
        """
        pieces = self._parts(x, sigma, conditioning, adapter)
        made = [self._guided(*part, guidance) for part in pieces]
        return made[0] if len(made) == 1 else torch.cat(made)

    def branches(
        self, x: Tensor, sigma: float | Tensor, conditioning: Conditioning, adapter: str | None
    ) -> tuple[Tensor, Tensor]:
        """The two velocities of classifier-free guidance, with the prompt and with the negative one; otherwise as
        `velocity`."""
        pieces = self._parts(x, sigma, conditioning, adapter)
        v_cond, v_uncond = zip(*(self._branches(*part) for part in pieces))
        return torch.cat(v_cond), torch.cat(v_uncond)

    def _parts(
        self, x: Tensor, sigma: float | Tensor, conditioning: Conditioning, adapter: str | None
    ) -> Iterator[tuple[nn.Module, Tensor, Tensor, Conditioning]]:
        """The batch in parts that are called one after the other: (network, x, sigma [B], conditioning)."""
        if isinstance(sigma, Tensor):
            sigma_B = sigma.to(x.device, torch.float32).expand(len(x))
        else:  # filled on the device: copying a number there would wait for it
            sigma_B = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        if adapter is not None and adapter in self.models:
            network = self.models.use(adapter)
        else:
            network = self.transformer
            self.adapters.use(adapter)
        # Without gradients, compute.batch bounds memory. With them, splitting would save none: the graph keeps all.
        size = len(x) if torch.is_grad_enabled() else self.compute.batch or len(x)
        for part in parts(range(len(x)), size):
            yield network, x[part], sigma_B[part], conditioning[part]

    def _guided(
        self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        if self.embedded_guidance:
            scale_B = torch.full_like(sigma_B, guidance)
            return self._forward(network, x, sigma_B, conditioning.joined(guidance=scale_B))
        if guidance == 1.0:
            return self._forward(network, x, sigma_B, conditioning)
        v_cond, v_uncond = self._branches(network, x, sigma_B, conditioning)
        return self.combined(v_cond, v_uncond, guidance)

    def combined(self, v_cond: Tensor, v_uncond: Tensor, guidance: float) -> Tensor:
        """The guided velocity of those with and without the prompt. Default: classifier-free guidance."""
        return classifier_free(v_cond, v_uncond, guidance)

    def _branches(
        self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        both = Conditioning.cat([self.negative().repeat(len(x)), conditioning])
        v_uncond, v_cond = self._forward(network, x.repeat(2, 1, 1, 1), sigma_B.repeat(2), both).chunk(2)
        return v_cond, v_uncond

    def _forward(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        self.meter.count(len(x), torch.is_grad_enabled())
        reduced = self.dtype != torch.float32
        # Without gradients nothing else needs a cast weight: the cache would hold all of a student's at once.
        cached = torch.is_grad_enabled()
        with torch.autocast(self.device.type, self.dtype, enabled=reduced, cache_enabled=cached):
            return self.predict(network, x, sigma_B, conditioning).float()

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """Standard normal latents [count, C, h, w] on the backbone's device; see `normal` in bench/sampler/draws.py."""
        return normal((count, *self.latent_shape), generator, self.device)

    def latent_side(self, resolution: int) -> int:
        """Latent pixels along one side of images of so many pixels. Raises UsageError if the backbone has one size."""
        raise UsageError(f"backbone {self.name!r} has a fixed image size: leave out evaluation.resolution")

    @contextmanager
    def at(self, resolution: int | None) -> Iterator[None]:
        """Draw images of another resolution, in pixels along one side, in a `with` block; None: of the own one."""
        own = self.latent_shape
        if resolution is not None:
            side = self.latent_side(resolution)
            self.latent_shape = (own[0], side, side)
        try:
            yield
        finally:
            self.latent_shape = own

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
