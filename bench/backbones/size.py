"""How large an SD3 transformer is and what a forward pass of it costs, counted on its shapes alone."""

import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from bench.backbones.adapters import TARGETS

ACTIVATION_BYTES = 34
"""A transformer block keeps 34 bytes a token and channel at 16 bits for its backward pass (arXiv 2205.05198, Eq. 2,
without attention's scores, which fused attention does not keep)."""
ONCE = re.compile(r"time_text_embed|norm\d?(_context)?\.linear$|norm_out\.linear$")
"""Layers that see one vector a latent, not one a token."""
TEXT = re.compile(r"context_embedder|add_[qkv]_proj|to_add_out|ff_context")
"""Layers that see text tokens."""


@dataclass(frozen=True)
class Size:
    """An SD3 transformer at a latent size; `frozen` are the parameters of text encoders and VAE by name."""

    config: dict
    latent_side: int
    text_tokens: int
    frozen: dict[str, int]

    @cached_property
    def _model(self) -> nn.Module:
        from diffusers import SD3Transformer2DModel

        with torch.device("meta"):
            return SD3Transformer2DModel.from_config(self.config)

    @property
    def parameters(self) -> int:
        """Of the transformer."""
        return sum(p.numel() for p in self._model.parameters())

    @property
    def image_tokens(self) -> int:
        return (self.latent_side // self._model.config.patch_size) ** 2

    @property
    def width(self) -> int:
        return self._model.config.num_attention_heads * self._model.config.attention_head_dim

    @property
    def flops(self) -> float:
        """Floating-point operations of one latent's forward pass: two a multiplication of every linear layer, patch
        embedding and attention; a backward pass to LoRA adapters is about twice that."""
        total = 0.0
        for name, layer in self._model.named_modules():
            if isinstance(layer, nn.Linear):
                tokens = 1 if ONCE.search(name) else self.text_tokens if TEXT.search(name) else self.image_tokens
                total += 2 * layer.weight.numel() * tokens
            elif isinstance(layer, nn.Conv2d):
                total += 2 * layer.weight.numel() * self.image_tokens
        joint = self.image_tokens + self.text_tokens
        for block in self._model.transformer_blocks:
            total += 4 * joint**2 * self.width
            if getattr(block, "attn2", None) is not None:
                total += 4 * self.image_tokens**2 * self.width
        return total

    def adapter(self, rank: int, targets: tuple[str, ...] | None) -> int:
        """Parameters of one LoRA adapter."""
        names = tuple(f".{target}" for target in targets or TARGETS)
        layers = [m for name, m in self._model.named_modules() if isinstance(m, nn.Linear) and name.endswith(names)]
        return sum(rank * (layer.in_features + layer.out_features) for layer in layers)

    def activations(self, latents: int, checkpointed: bool, bytes_each: int) -> float:
        """Bytes that a training forward of so many latents keeps; checkpointed: each block's input, and one block's."""
        tokens = latents * (self.image_tokens + self.text_tokens) * self.width
        blocks = len(self._model.transformer_blocks)
        block = ACTIVATION_BYTES * bytes_each / 2 * tokens
        return blocks * bytes_each * tokens + block if checkpointed else blocks * block
