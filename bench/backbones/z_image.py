"""Z-Image: a network that takes images and prompts as lists, each prompt without padding, and whose time runs from
noise at 0 to the image at 1. As ZImagePipeline in diffusers, whose guidance scale is one less than the one here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.flux import FROZEN as FROZEN_FLUX
from bench.backbones.flux import VAE
from bench.backbones.packing import PATCH
from bench.backbones.pipeline.describe import family_of
from bench.backbones.pipeline.family import PipelineFamily, Published
from bench.config.bounds import Count
from bench.config.families import Family
from bench.errors import UsageError
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning

MULTIPLE = 32
"""The network pads prompts to a multiple of so many tokens."""
QWEN3 = 4_022_468_096
"""Parameters of Qwen3-4B without its head."""
FROZEN = {"text_encoder": QWEN3, "vae": FROZEN_FLUX["vae"]}


class ZImageFields(BaseModel):
    """What is read here from a ZImageTransformer2DModel's configuration, with diffusers' defaults."""

    model_config = ConfigDict(strict=True)
    all_patch_size: list[Literal[2]] = [2]
    all_f_patch_size: list[Literal[1]] = [1]
    in_channels: Count = 16
    cap_feat_dim: Count = 2560
    axes_lens: Annotated[list[Count], Field(min_length=3, max_length=3)] = [1024, 512, 512]
    """Positions that the network knows: of prompts, rows and columns."""
    siglip_feat_dim: None = None
    """The omni model, which also sees images, is another pipeline's."""


class ZImage(PipelineFamily):
    """Z-Image, Z-Image-Turbo and pipelines of the same class."""

    name = "z_image"
    pipeline = "ZImagePipeline"
    network = "ZImageTransformer2DModel"
    encoders: ClassVar = {"text_encoder": "Qwen3Model"}
    tokenizers = ("tokenizer",)
    fields = ZImageFields
    # As in Flow-Factory.
    targets = (
        "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w1",
        "feed_forward.w2", "feed_forward.w3",
    )  # fmt: skip
    block_lists = ("noise_refiner", "context_refiner", "layers")
    padded = ("sequence",)
    text_tokens = 512  # what a prompt is truncated to: shorter ones cost less
    published: ClassVar = {
        "hub:Tongyi-MAI/Z-Image-Turbo": Published({}, VAE, {"shift": 3.0}, FROZEN),
        "hub:Tongyi-MAI/Z-Image": Published({}, VAE, {"shift": 6.0}, FROZEN),
    }

    def latent_channels(self, config: ZImageFields) -> int:
        """The network's."""
        return config.in_channels

    def check(self, config: ZImageFields, side: int, tokens: int) -> None:
        """An image's tokens have positions behind those of the prompt."""
        texts, *sides = config.axes_lens
        if side > PATCH * min(sides):
            raise UsageError(
                f"the network knows {min(sides)} rows and columns of patches, but an image would have {side // PATCH}: "
                "lower compute.resolution"
            )
        if -(-tokens // MULTIPLE) * MULTIPLE + 2 > texts:
            raise UsageError(
                f"the network knows {texts} positions, too few for prompts of {tokens} tokens: lower "
                "compute.max_sequence_length"
            )

    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """The last but one hidden states of the language model, of the prompt's own tokens in its chat template."""
        (sequence,), _ = pipeline.encode_prompt(
            [prompt], device, do_classifier_free_guidance=False, max_sequence_length=tokens
        )
        return {"sequence": sequence[None]}

    def prompt_shapes(self, config: ZImageFields, tokens: int) -> dict[str, tuple[int, ...]]:
        """As `encode`, of a prompt that is as long as it may be."""
        return {"sequence": (tokens, config.cap_feat_dim)}

    def arguments(self, config: ZImageFields, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """Lists of images with one frame and of prompts."""
        lengths = conditioning.lengths["sequence"]
        return {
            "x": list(x.unsqueeze(2).unbind(0)),
            "t": 1 - sigma_B,
            "cap_feats": [row[:length] for row, length in zip(conditioning["sequence"], lengths, strict=True)],
        }

    def prediction(self, config: ZImageFields, output: list[Tensor], x: Tensor) -> Tensor:
        """The network points from noise to image."""
        return -torch.stack(output).squeeze(2)


def family() -> Family:
    """Pipelines of Z-Image."""
    return family_of(ZImage())
