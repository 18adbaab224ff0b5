"""Stable Diffusion 3 and 3.5: networks that see a latent as patches at fixed positions, and three text models.

As diffusers' StableDiffusion3Pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from bench.backbones.flow_scheduler import SchedulerFields
from bench.backbones.pipeline.describe import describe_source, family_of
from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.sd3.checkpoint_file import CheckpointFile
from bench.backbones.sd3.published import DEFAULT, PUBLISHED
from bench.config.bounds import Count
from bench.config.descriptor import Descriptor
from bench.config.families import Family
from bench.errors import UsageError
from bench.sampler.schedule import TRAIN_TIMESTEPS
from bench.weights.hub import PREFIX, refuse_shadowed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning
    from bench.backbones.diffusion_scheduler import DiffusionFields
    from bench.sampler.levels import Levels

CLIP_TOKENS = 77


class Sd3Fields(BaseModel):
    """What is read here from an SD3Transformer2DModel's configuration."""

    model_config = ConfigDict(strict=True)
    sample_size: Count
    patch_size: Count
    in_channels: Count
    pos_embed_max_size: Count
    num_layers: Count = 18
    attention_head_dim: Count = 64
    num_attention_heads: Count = 18
    joint_attention_dim: Count = 4096
    pooled_projection_dim: Count = 2048


class Sd3(PipelineFamily):
    """Stable Diffusion 3 and 3.5 (medium, large) and pipelines of the same class."""

    name = "sd3"
    pipeline = "StableDiffusion3Pipeline"
    network = "SD3Transformer2DModel"
    encoders: ClassVar = {
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    }
    tokenizers = ("tokenizer", "tokenizer_2", "tokenizer_3")
    nullable: ClassVar = {"text_encoder_3": "tokenizer_3"}
    fields = Sd3Fields
    # As published for SD3.5-M (Flow-GRPO, DiffusionNFT, DiffusionOPD): every attention projection.
    targets = (
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
        "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    )  # fmt: skip
    text_tokens = 128  # as Flow-GRPO and its successors train; the pipeline defaults to 256
    table = "diffusers"
    batch = 64
    file = CheckpointFile()
    recipes = Path(__file__).parent / "recipes"
    published = PUBLISHED

    def latent_channels(self, config: Sd3Fields) -> int:
        """The network's."""
        return config.in_channels

    def latent_side(self, config: Sd3Fields) -> int:
        """The one that it was trained on."""
        return config.sample_size

    def patch(self, config: Sd3Fields) -> int:
        """The network's."""
        return config.patch_size

    def check(self, config: Sd3Fields, side: int, tokens: int) -> None:
        """The network has a table of positions, from whose middle it cuts those of an image."""
        if side % config.patch_size or side // config.patch_size > config.pos_embed_max_size:
            most = config.patch_size * config.pos_embed_max_size
            raise UsageError(
                f"{side} x {side} latent pixels (of compute.resolution, or the transformer's sample_size) do not fit: "
                f"it takes multiples of {config.patch_size} up to {most} (from its pos_embed_max_size)"
            )

    def levels(self, config: Sd3Fields, scheduler: SchedulerFields | DiffusionFields, side: int) -> Levels:
        """The scheduler's fixed shift."""
        assert isinstance(scheduler, SchedulerFields)
        for name in ("use_dynamic_shifting", "shift_terminal"):
            if value := getattr(scheduler, name):
                raise UsageError(f"scheduler_config.json: {name}={value} is not followed: set it to false or null")
        return super().levels(config, scheduler, side)

    def guidance(self, config: Sd3Fields, options: Mapping[str, Any]) -> float:
        """As Flow-GRPO samples SD3.5-Medium."""
        return 4.5

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """The sequence of CLIP's and T5's states, and the pooled embeddings of both CLIPs."""
        sequence, _, pooled, _ = pipeline.encode_prompt(
            [prompt], None, None, do_classifier_free_guidance=False, device=device, max_sequence_length=tokens
        )
        return {"sequence": sequence, "pooled": pooled}

    def prompt_shapes(self, config: Sd3Fields, tokens: int) -> dict[str, tuple[int, ...]]:
        """As `encode`; without T5, its states are zeros."""
        sequence = (CLIP_TOKENS + tokens, config.joint_attention_dim)
        return {"sequence": sequence, "pooled": (config.pooled_projection_dim,)}

    def arguments(self, config: Sd3Fields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The latents at timesteps of 1000."""
        return {
            "hidden_states": x,
            "encoder_hidden_states": conditioning["sequence"],
            "pooled_projections": conditioning["pooled"],
            "timestep": TRAIN_TIMESTEPS * sigma_B,
        }

    def prediction(self, config: Sd3Fields, output: Tensor, x: Tensor) -> Tensor:
        """The output itself."""
        return output


SD3 = Sd3()


def descriptor(source: str = DEFAULT) -> Descriptor:
    """SD3.5-Medium from the hub, or the pipeline at `source` (folder, single file, hub:OWNER/REPO)."""
    if source.startswith(PREFIX):
        refuse_shadowed(source)  # the registered name comes here without the checks of an address
    return describe_source(SD3, source)


def family() -> Family:
    """Pipelines of SD3 and SD3.5, and single files with an SD3 transformer."""
    return family_of(SD3)
