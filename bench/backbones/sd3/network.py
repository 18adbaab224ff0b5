"""Shapes of diffusers' SD3Transformer2DModel, and the layers that its adapters target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from bench.backbones.autoencoder_kl import KL
from bench.backbones.network import Network
from bench.backbones.size import Size
from bench.backbones.vae import VaeDecoder
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

# As published for SD3.5-M (Flow-GRPO, DiffusionNFT, DiffusionOPD): every attention projection.
TARGETS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)  # fmt: skip


@dataclass(frozen=True)
class Sd3Network(Network):
    """An SD3 transformer of any size."""

    config: str
    """The transformer's configuration as JSON, because instances must be hashable."""
    latent_side: int
    """Latent pixels along one side."""
    text_tokens: int
    """Tokens of one encoded prompt."""
    targets = TARGETS

    @property
    def latent_numbers(self) -> int:
        """Number of elements in one latent [C, h, w]."""
        return _known(self.config).in_channels * self.latent_side**2

    @property
    def prompt_numbers(self) -> int:
        """Number of elements in one prompt: the embeddings of its tokens and the pooled one."""
        known = _known(self.config)
        return self.text_tokens * known.joint_attention_dim + known.pooled_projection_dim

    def build(self) -> nn.Module:
        """The transformer on the meta device."""
        return _built(self.config)

    def inputs(self, model: Any, latents: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Empty arguments of the transformer for a batch of `latents`."""
        c, side = model.config, self.latent_side
        return {
            "hidden_states": torch.empty(latents, c.in_channels, side, side, dtype=dtype),
            "encoder_hidden_states": torch.empty(latents, self.text_tokens, c.joint_attention_dim, dtype=dtype),
            "pooled_projections": torch.empty(latents, c.pooled_projection_dim, dtype=dtype),
            "timestep": torch.empty(latents),
        }


def sd3_size(config: dict, latent_side: int, text_tokens: int, frozen: dict[str, int], vae: dict | None = None) -> Size:
    """Size of an SD3 transformer with configuration `config`.

    `frozen` are the parameter counts of text encoders and VAE; `vae` is the VAE's configuration, None to leave decoding
    uncounted.
    """
    # Keys with an underscore, such as the path a model was loaded from, must not make equal networks differ.
    told = {name: value for name, value in config.items() if not name.startswith("_")}
    network = Sd3Network(json.dumps(told, sort_keys=True), latent_side, text_tokens)
    decoder = VaeDecoder(KL, json.dumps(vae, sort_keys=True), latent_side) if vae else None
    return Size(network, frozen, decoder)


def _built(config: str) -> nn.Module:
    from diffusers.models import SD3Transformer2DModel

    with torch.device("meta"):
        return SD3Transformer2DModel.from_config(json.loads(config))


@cache
def _known(config: str):
    """The configuration completed with diffusers' defaults."""
    return _built(config).config
