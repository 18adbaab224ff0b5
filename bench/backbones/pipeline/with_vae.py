"""A backbone with a VAE, and with text encoders that are loaded when a prompt is not in the cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.backbones.autoencoder_kl import KL
from bench.backbones.conditioning import Conditioning
from bench.backbones.flow import FlowBackbone
from bench.backbones.vae import Vae
from bench.config.compute import Compute


class WithVae(FlowBackbone):
    """Subclasses load the parts, encode prompts and call the network."""

    encoders: Iterable[str]
    """Folders of the text encoders."""
    vae_kind: Vae = KL
    padded: tuple[str, ...] = ()
    """Tensors of a prompt that are as long as it is."""

    def __init__(
        self,
        name: str,
        source: str,
        network: nn.Module,
        vae: Any,
        identity: str,
        device: str,
        compute: Compute,
        cache: Path | None,
        words: str,
    ):
        """`identity` hashes the weights; `words` is a suffix for a folder's name, from what else encodes prompts."""
        # Everything that changes a prompt's encoding must be part of the name of the cache folder.
        tokens = f"-{compute.max_sequence_length}" if compute.max_sequence_length else ""
        folder = cache / f"{identity}-{compute.precision}{tokens}{words}" if cache else None
        super().__init__(name, network, identity, device, compute, folder)
        self.source = source
        self._text: Any = None
        self.vae = vae.requires_grad_(False).eval()
        if compute.decode == "sliced":
            self.vae.enable_slicing()
        elif compute.decode == "tiled":
            self.vae.enable_tiling()
        self.to(self.device)

    @abstractmethod
    def _load_text(self) -> Any:
        """diffusers' pipeline with text encoders."""

    @abstractmethod
    def _encode_one(self, pipeline: Any, prompt: str, negative: bool) -> dict[str, Tensor]:
        """Name -> the encoding [1, ...] of a prompt, or of a negative prompt."""

    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        return self._encode_all(prompts, negative=False)

    def _encode_negative(self, prompt: str) -> Conditioning:
        (encoded,) = self._encode_all([prompt], negative=True)
        return encoded

    def _encode_all(self, prompts: list[str], negative: bool) -> Iterator[Conditioning]:
        if self._text is None:
            self._text = self._load_text()
        found = [getattr(self._text, name) for name in self.encoders]
        encoders = [encoder for encoder in found if encoder is not None]
        for encoder in encoders:
            encoder.to(self.device)
        for prompt in prompts:
            tensors = self._encode_one(self._text, prompt, negative)
            yield Conditioning(tensors, {name: (tensors[name].shape[1],) for name in self.padded})
        if self.compute.offload_text_encoders:
            for encoder in encoders:
                encoder.to("cpu")

    def encode_pictures(self, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents [B, C, h, w]: the mode of the VAE's distribution, not a sample."""
        return self.vae_kind.encode(self.vae, images_BCHW)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, H, W], float32 in [0, 1]."""
        return self.vae_kind.decode(self.vae, latents_BCHW)
