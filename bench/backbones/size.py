"""How large an SD3 transformer is and what passes through it cost, counted on shapes (bench/backbones/trial.py)."""

import json
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from bench.backbones.adapters import TARGETS, Shape
from bench.config.compute import PLAIN, Compute
from bench.errors import UsageError, one_line

if TYPE_CHECKING:
    from bench.backbones.trial import Pass


@dataclass(frozen=True)
class Size:
    """An SD3 transformer at a latent size; `frozen` are the parameters of text encoders and VAE by name."""

    config: dict
    latent_side: int
    text_tokens: int
    frozen: dict[str, int]
    vae: dict | None = None
    """Configuration of the AutoencoderKL; None where decoding is not to be counted."""

    @cached_property
    def _key(self) -> str:
        told = {name: value for name, value in self.config.items() if not name.startswith("_")}  # not where it was read
        return json.dumps(told, sort_keys=True)

    @property
    def _known(self):
        """The configuration with the defaults of what it leaves out."""
        return _model(self._key).config

    @property
    def parameters(self) -> int:
        """Of the transformer."""
        return sum(p.numel() for p in _model(self._key).parameters())

    @property
    def image_tokens(self) -> int:
        return (self.latent_side // self._known.patch_size) ** 2

    @property
    def flops(self) -> float:
        """Floating-point operations of one latent's forward pass through the base: two a multiplication."""
        return self.sampling(1, PLAIN).forward

    def adapter(self, rank: int, targets: tuple[str, ...] | None) -> int:
        """Parameters of one LoRA adapter. Raises UsageError for targets that the transformer does not have."""
        return _adapter(self._key, rank, targets or TARGETS)

    def training(self, latents: int, rank: int, targets: tuple[str, ...] | None, compute: Compute) -> "Pass":
        """Forward and backward pass of a batch to an adapter, on a GPU. Raises UsageError as `adapter`."""
        how = (self.latent_side, self.text_tokens, rank, targets or TARGETS)
        return _training(self._key, latents, *how, compute.precision, compute.gradient_checkpointing)

    def sampling(self, latents: int, compute: Compute) -> "Pass":
        """Forward pass of a batch without gradients, on a GPU."""
        return _sampling(self._key, latents, self.latent_side, self.text_tokens, compute.precision)

    def decoding(self, pictures: int, compute: Compute) -> "Pass | None":
        """What the VAE's decoder does at once of a batch of pictures: all of them, one, or tile by tile all."""
        if self.vae is None:
            return None
        at_once = 1 if compute.decode == "sliced" else pictures
        return _decoding(json.dumps(self.vae, sort_keys=True), at_once, self.latent_side, compute.decode == "tiled")

    @property
    def picture_bytes(self) -> int:
        """Of one decoded picture, [3, H, W] in float32."""
        if self.vae is None:
            return 0
        return 3 * 4 * (self.latent_side * 2 ** (len(self.vae["block_out_channels"]) - 1)) ** 2

    def state_bytes(self, compute: Compute) -> tuple[int, int]:
        """Of one latent in float32, and of one encoded prompt at the precision of the encoders."""
        each = 4 if compute.precision == "float32" else 2
        prompt = self.text_tokens * self._known.joint_attention_dim + self._known.pooled_projection_dim
        return 4 * self._known.in_channels * self.latent_side**2, each * prompt


@cache
def _model(config: str):
    from bench.backbones.trial import transformer

    return transformer(json.loads(config))


@cache
def _adapter(config: str, rank: int, targets: tuple[str, ...]) -> int:
    from bench.backbones.trial import adapted, transformer

    try:
        return sum(p.numel() for p in adapted(transformer(json.loads(config)), Shape(rank, rank, targets)))
    except ValueError as error:  # peft: target modules not found
        raise UsageError(f"lora.targets {', '.join(targets)}: {one_line(error)}") from error


@cache
def _training(
    config: str, latents: int, side: int, text_tokens: int, rank: int, targets: tuple[str, ...], precision: str,
    checkpointed: bool,
) -> "Pass":  # fmt: skip
    from bench.backbones.trial import training_pass

    _adapter(config, rank, targets)
    shape = Shape(rank, rank, targets)
    return training_pass(json.loads(config), latents, side, text_tokens, shape, precision, checkpointed)


@cache
def _sampling(config: str, latents: int, side: int, text_tokens: int, precision: str) -> "Pass":
    from bench.backbones.trial import sampling_pass

    return sampling_pass(json.loads(config), latents, side, text_tokens, precision)


@cache
def _decoding(config: str, pictures: int, side: int, tiled: bool) -> "Pass":
    from bench.backbones.trial import decoding_pass

    return decoding_pass(json.loads(config), pictures, side, tiled)
