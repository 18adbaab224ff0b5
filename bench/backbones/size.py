"""A model's size and the cost of passes through it, counted from shapes (bench/backbones/trial.py).

Run prediction uses this for every model family; families differ only in their Network and Decoder.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from bench.backbones.adapters import Shape
from bench.backbones.full_weights import Full
from bench.backbones.network import Decoder, Network
from bench.config.compute import PLAIN, Compute
from bench.errors import UsageError, one_line

if TYPE_CHECKING:
    from bench.backbones.trial import Pass


@dataclass(frozen=True)
class Size:
    """A model at one image resolution and prompt length."""

    network: Network
    frozen: dict[str, int]
    """Parameter counts of the text encoders and the VAE, by name."""
    decoder: Decoder | None = None
    """None if decoding is not to be counted."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return _parameters(self.network)

    @property
    def latent_side(self) -> int:
        """Latent pixels along one side."""
        return self.network.latent_side

    @property
    def flops(self) -> float:
        """Floating-point operations of one forward pass of one latent through the base, 2 per multiply-add."""
        return self.sampling(1, PLAIN).forward

    def student(self, shape: Shape | Full) -> int:
        """Number of parameters of one student. Raises UsageError for layers that the network does not have."""
        return _student(self.network, shape)

    def training(self, latents: int, shape: Shape | Full, compute: Compute) -> "Pass":
        """Forward and backward pass of a batch that trains a student, on a GPU. Raises UsageError as `student`."""
        return _training(self.network, latents, shape, compute.precision, compute.gradient_checkpointing)

    def sampling(self, latents: int, compute: Compute) -> "Pass":
        """Forward pass of a batch without gradients, on a GPU."""
        return _sampling(self.network, latents, compute.precision)

    def decoding(self, pictures: int, compute: Compute) -> "Pass | None":
        """One call of the decoder for a batch of images: for all of them, or for one if compute.decode is sliced."""
        if self.decoder is None:
            return None
        at_once = 1 if compute.decode == "sliced" else pictures
        return _decoding(self.decoder, at_once, compute.decode == "tiled")

    @property
    def picture_bytes(self) -> int:
        """Bytes of one decoded image, [3, H, W] in float32; 0 without a decoder."""
        return 3 * 4 * self.decoder.picture_side**2 if self.decoder else 0

    def state_bytes(self, compute: Compute) -> tuple[int, int]:
        """Bytes of one latent in float32, and of one encoded prompt at the precision of the text encoders."""
        each = 4 if compute.precision == "float32" else 2
        return 4 * self.network.latent_numbers, each * self.network.prompt_numbers


# Counting takes seconds, and predictions ask for the same passes many times. Hence the caches, keyed by hashable parts.
@cache
def _parameters(network: Network) -> int:
    return sum(p.numel() for p in network.build().parameters())


@cache
def _student(network: Network, shape: Shape | Full) -> int:
    from bench.backbones.trial import adapted, built

    try:
        return sum(p.numel() for p in adapted(built(network), network, shape))
    except ValueError as error:  # peft: target modules not found
        assert isinstance(shape, Shape)
        raise UsageError(f"lora.targets {', '.join(shape.targets or network.targets)}: {one_line(error)}") from error


@cache
def _training(network: Network, latents: int, shape: Shape | Full, precision: str, checkpointed: bool) -> "Pass":
    from bench.backbones.trial import training_pass

    _student(network, shape)  # raises UsageError for layers that the network does not have
    return training_pass(network, latents, shape, precision, checkpointed)


@cache
def _sampling(network: Network, latents: int, precision: str) -> "Pass":
    from bench.backbones.trial import sampling_pass

    return sampling_pass(network, latents, precision)


@cache
def _decoding(decoder: Decoder, pictures: int, tiled: bool) -> "Pass":
    from bench.backbones.trial import decoding_pass

    return decoding_pass(decoder, pictures, tiled)
