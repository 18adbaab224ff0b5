"""Sizes of SD3 networks, for tests that count."""

from bench.backbones.flow_scheduler import SchedulerFields
from bench.backbones.pipeline.network import pipeline_size
from bench.backbones.pipeline.shape_only import ShapeOnly
from bench.backbones.pipeline.source import Configuration
from bench.backbones.sd3 import SD3, Sd3Fields
from bench.backbones.size import Size
from bench.config.compute import Compute
from bench.config.resolve import describe


def sd3_size(config: dict, latent_side: int, text_tokens: int, frozen: dict[str, int], vae: dict | None = None) -> Size:
    """Size of a network of this configuration, for prompts of so many tokens."""
    widths = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048} | config
    prompt = {"sequence": (text_tokens, widths["joint_attention_dim"]), "pooled": (widths["pooled_projection_dim"],)}
    return pipeline_size(SD3, config, latent_side, prompt, frozen, vae)


def size(source: str, compute: Compute) -> Size:
    """Size of the model at an address."""
    found = describe(source).size
    assert found is not None
    return found(compute)


def shape_only(device: str, compute: Compute, config: dict) -> ShapeOnly:
    """An SD3 network of this configuration with random weights, with a VAE that halves the resolution three times."""
    vae = {"block_out_channels": [1] * 4}
    told = Configuration(Sd3Fields.model_validate(config), config, vae, SchedulerFields(shift=3.0), {}, (), exact=False)
    return ShapeOnly(SD3, told, device, compute)
