"""FLUX.2 klein: networks that see normalised 2 x 2 patches of latents, with three layers of Qwen3's states as text. As
diffusers' Flux2KleinPipeline without images to edit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from bench.backbones.autoencoder_flux2 import FLUX2
from bench.backbones.flow_scheduler import SchedulerFields
from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import PipelineFamily, Published
from bench.backbones.z_image import QWEN3
from bench.config.bounds import Count
from bench.config.families import Family
from bench.errors import UsageError
from bench.lazy import torch
from bench.sampler.levels import FlowLevels
from bench.sampler.schedule import Schedule, make_schedule

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning

NETWORK: dict[str, Any] = {
    "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "guidance_embeds": False,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {"use_dynamic_shifting": True}
FROZEN = {"text_encoder": QWEN3, "vae": 84_046_115}
MANY_TOKENS = 4300
"""From more tokens on, the shift does not depend on the number of steps."""


@dataclass(frozen=True)
class Flux2Levels(FlowLevels):
    """Rectified flow with a shift e^mu, where mu depends on the number of tokens and on that of steps.

    It is linear in both, as diffusers' compute_empirical_mu: in tokens at 10 and at 200 steps, and in steps in between.
    """

    shift: float | None = None
    tokens: int = MANY_TOKENS

    def _schedule(self, steps: int, table: str, shift: float | None) -> Schedule:
        at_10, at_200 = 8.73809524e-05 * self.tokens + 1.89833333, 0.00016927 * self.tokens + 0.45666666
        slope = 0.0 if self.tokens > MANY_TOKENS else (at_200 - at_10) / 190
        return make_schedule(steps, shift or math.exp(at_200 + slope * (steps - 200)), table, self.shift_terminal)

    def __str__(self) -> str:
        return "shift by tokens and steps"


class Flux2Fields(BaseModel):
    """What is read here from a Flux2Transformer2DModel's configuration, with diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    in_channels: Count = 128
    joint_attention_dim: Count = 15360
    guidance_embeds: Literal[False]
    """FLUX.2 dev, which takes the guidance scale as an input, is another pipeline's."""


class Flux2Klein(PipelineFamily):
    """FLUX.2 klein, its undistilled bases and pipelines of the same class."""

    name = "flux2_klein"
    pipeline = "Flux2KleinPipeline"
    network = "Flux2Transformer2DModel"
    encoders: ClassVar = {"text_encoder": "Qwen3ForCausalLM"}
    tokenizers = ("tokenizer",)
    fields = Flux2Fields
    vae = FLUX2
    # The attention of both kinds of blocks, as far as names tell its layers from others.
    targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
        "attn.add_v_proj", "attn.to_add_out", "attn.to_qkv_mlp_proj",
    )  # fmt: skip
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    text_tokens = 512
    published: ClassVar = {
        "hub:black-forest-labs/FLUX.2-klein-4B": Published(NETWORK, {}, SCHEDULER, FROZEN, {"is_distilled": True}),
        "hub:black-forest-labs/FLUX.2-klein-base-4B": Published(NETWORK, {}, SCHEDULER, FROZEN),
    }

    def latent_channels(self, config: Flux2Fields) -> int:
        """Those of a patch."""
        return config.in_channels

    def latent_side(self, config: Flux2Fields) -> int:
        """1024 image pixels."""
        return 64

    def patch(self, config: Flux2Fields) -> int:
        """A latent pixel is a patch already."""
        return 1

    def levels(self, config: Flux2Fields, scheduler: Any, side: int) -> Flux2Levels:
        """By the pipeline's own formula, which the scheduler must be told to follow."""
        assert isinstance(scheduler, SchedulerFields)
        if not scheduler.use_dynamic_shifting or scheduler.time_shift_type != "exponential":
            raise UsageError(
                "the pipeline shifts timesteps by itself: set its scheduler's use_dynamic_shifting to true"
            )
        return Flux2Levels(None, scheduler.shift_terminal, self.table, side**2)

    def guidance(self, config: Flux2Fields, options: Mapping[str, Any]) -> float:
        """The pipeline's default; none for a distilled model, which ignores it."""
        return 1.0 if options.get("is_distilled") else 4.0

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Three layers' hidden states of the prompt in its chat template, padded."""
        sequence, _ = pipeline.encode_prompt(prompt, device, max_sequence_length=tokens)
        return {"sequence": sequence}

    def prompt_shapes(self, config: Flux2Fields, tokens: int) -> dict[str, tuple[int, ...]]:
        """As `encode`."""
        return {"sequence": (tokens, config.joint_attention_dim)}

    def arguments(self, config: Flux2Fields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Places are (image, row, column, word): an image's token has the middle two, that of a text the last."""
        rows, columns = x.shape[2:]
        image = torch.zeros(rows, columns, 4, device=x.device)
        image[..., 1] = torch.arange(rows, device=x.device)[:, None]
        image[..., 2] = torch.arange(columns, device=x.device)
        text = torch.zeros(conditioning["sequence"].shape[1], 4, device=x.device)
        text[:, 3] = torch.arange(len(text), device=x.device)
        return {
            "hidden_states": x.flatten(2).transpose(1, 2),
            "encoder_hidden_states": conditioning["sequence"],
            "timestep": sigma_B,
            "guidance": None,
            "img_ids": image.flatten(0, 1),
            "txt_ids": text,
        }

    def prediction(self, config: Flux2Fields, output: Tensor, x: Tensor) -> Tensor:
        """The tokens in their places."""
        return output.transpose(1, 2).unflatten(2, x.shape[2:])


def family() -> Family:
    """Pipelines of FLUX.2 klein."""
    return family_of(Flux2Klein())
