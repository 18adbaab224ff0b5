"""Base class of the backbones around diffusers' SD3Transformer2DModel."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bench.backbones.conditioning import Conditioning
from bench.backbones.flow import FlowBackbone
from bench.backbones.sd3.network import TARGETS, sd3_size
from bench.backbones.size import Size
from bench.sampler.schedule import TRAIN_TIMESTEPS

if TYPE_CHECKING:
    from diffusers.models import SD3Transformer2DModel


class Sd3Transformer(FlowBackbone):
    """A policy whose network is an SD3Transformer2DModel of any size.

    Encoded prompts hold `sequence` [B, T, D] and `pooled` [B, P].
    """

    transformer: "SD3Transformer2DModel"
    targets = TARGETS

    def blocks(self, network: Any) -> list[nn.Module]:
        """The joint attention blocks."""
        return list(network.transformer_blocks)

    def predict(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity eps - x0 [B, C, h, w] without guidance; the transformer's timestep is 1000 sigma."""
        return network(
            hidden_states=x.to(self.dtype),
            encoder_hidden_states=conditioning["sequence"].to(self.dtype),
            pooled_projections=conditioning["pooled"].to(self.dtype),
            timestep=TRAIN_TIMESTEPS * sigma_B,
            return_dict=False,
        )[0]

    def size(self, conditioning: Conditioning) -> Size:
        """Size of the transformer alone, for prompts as long as these."""
        tokens = conditioning["sequence"].shape[1]
        return sd3_size(dict(self.transformer.config), self.latent_shape[1], tokens, {})
