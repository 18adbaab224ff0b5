"""The micro world's text encoder: word tokens, character tokens inside quotes, one transformer layer."""

import re
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from bench.backbones.micro.captions import vocabulary
from bench.errors import UsageError

WIDTH = 96
MAX_TOKENS = 15
PAD = 0


class Tokenizer:
    """Maps captions to token ids; refuses words the micro world does not know."""

    def __init__(self) -> None:
        self.ids = {token: i + 1 for i, token in enumerate(vocabulary())}
        self.size = len(self.ids) + 1

    def __call__(self, prompts: list[str]) -> Tensor:
        """Prompts -> ids [B, MAX_TOKENS], padded with PAD; the empty prompt is all padding.

        Raises UsageError for a word outside the vocabulary or a prompt that is too long.
        """
        ids = torch.full((len(prompts), MAX_TOKENS), PAD)
        for row, prompt in enumerate(prompts):
            tokens = list(self._split(prompt))
            if len(tokens) > MAX_TOKENS:
                raise UsageError(f"prompt has {len(tokens)} tokens, the micro world takes {MAX_TOKENS}: {prompt!r}")
            ids[row, : len(tokens)] = torch.tensor([self._id(t, prompt) for t in tokens], dtype=torch.long)
        return ids

    @staticmethod
    def _split(prompt: str):
        for i, part in enumerate(prompt.split('"')):
            if i % 2:
                yield '"'
                yield from (f'"{char}' for char in part)
            else:
                yield from re.findall(r"[^\s,.]+", part.lower())

    def _id(self, token: str, prompt: str) -> int:
        if token not in self.ids:
            near = get_close_matches(token, self.ids, 1)
            hint = f"; nearest known: {near[0]!r}" if near else ""
            raise UsageError(f"the micro world does not know {token!r} (in prompt {prompt!r}){hint}")
        return self.ids[token]


class TextEncoder(nn.Module):
    """Token ids [B, T] -> (sequence [B, T, 96], pooled [B, 96])."""

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
        x = self.tokens(ids_BT) + self.places
        real = ids_BT != PAD
        # The empty prompt still needs one key to attend to.
        keys = real.clone()
        keys[:, 0] = True
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keys[:, None, None])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        x = self.norm_3(x + self.mlp(self.norm_2(x)))
        share = keys.to(x.dtype) / keys.sum(-1, keepdim=True)
        return x, self.pool((x * share[..., None]).sum(1))
