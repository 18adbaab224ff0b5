"""The micro world's text encoder: one transformer layer over the tokens of a prompt."""

import torch
from torch import Tensor, nn

from bench.backbones.micro.tokens import MAX_TOKENS, PAD

WIDTH = 96


class TextEncoder(nn.Module):
    """A pre-norm transformer layer with learned positions and a mean-pooled output."""

    def __init__(self, vocabulary_size: int, width: int = WIDTH, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.places = nn.Parameter(torch.randn(MAX_TOKENS, width) * 0.02)
        self.norm_1, self.norm_2, self.norm_3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.pool = nn.Linear(width, width)

    def forward(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] -> sequence [B, T, 96] and pooled [B, 96], at the default width."""
        x = self.tokens(ids_BT) + self.places
        real = ids_BT != PAD
        # The empty prompt is all padding, but attention needs at least one key; without it the result would be NaN.
        keys = real.clone()
        keys[:, 0] = True
        qkv = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, width / heads]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = self.norm_3(x + self.mlp(self.norm_2(x)))
        # The mean over tokens that are not padding.
        share = keys.to(x.dtype) / keys.sum(-1, keepdim=True)
        return x, self.pool((x * share[..., None]).sum(1))
