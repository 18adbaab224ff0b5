"""Adapters as peft and diffusers themselves write them, and what these two libraries make of a folder."""

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from bench.backbones.flow import FlowBackbone

PROMPTS = ["a photo of a red circle", "a photo of two stars"]


def untouched(backbone: FlowBackbone) -> nn.Module:
    """A copy of the backbone's transformer, which must not have adapters yet."""
    return copy.deepcopy(backbone.transformer)


def shaken(model: nn.Module, scale: float = 0.1) -> nn.Module:
    """Every adapter parameter of the model is changed, the magnitudes of DoRA by a share of themselves."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + scale * torch.randn(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def by_peft(base: nn.Module, folder: Path, **settings) -> Path:
    """A folder that peft wrote, of an adapter with these settings of LoraConfig and random tensors."""
    model = shaken(get_peft_model(copy.deepcopy(base), LoraConfig(**settings)))
    model.save_pretrained(folder)
    return folder


def in_peft(base: nn.Module, folder: Path) -> nn.Module:
    """The adapter as peft loads it onto a copy of the base."""
    return PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()


@torch.no_grad()
def velocity(backbone: FlowBackbone, model: nn.Module | str | None) -> Tensor:
    """At fixed states: of a model with the backbone's inputs, or of one of the backbone's adapters."""
    x = backbone.noise(2, torch.Generator().manual_seed(0))
    conditioning = backbone.encode(PROMPTS)
    if not isinstance(model, nn.Module):
        return backbone.velocity(x, 0.7, conditioning, model)
    return model(
        hidden_states=x, encoder_hidden_states=conditioning["sequence"], pooled_projections=conditioning["pooled"],
        timestep=torch.full((2,), 700.0), return_dict=False,
    )[0]  # fmt: skip
