"""Random weights in the layout of the released ImageReward.pt, tiny, and a tokenizer of letters for them."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WIDTH, DEPTH, SIDE, PATCH = 128, 2, 32, 8
"""Of both encoders: two heads of width 64, two blocks. Images of 32 x 32 pixels in patches of 8 x 8."""
SIGNS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
VOCABULARY = [*SIGNS, *LETTERS, *(f"##{letter}" for letter in LETTERS if letter.isalnum())]


def state(seed: int = 0) -> dict[str, Tensor]:
    """The tensors by their released names; NumPy's legacy generator gives the same numbers in every version."""
    draw = np.random.RandomState(seed).standard_normal
    found = {}

    def rand(name: str, *shape: int, scale: float = 0.1, around: float = 0.0) -> None:
        found[name] = torch.from_numpy((around + scale * draw(shape)).astype(np.float32))

    def linear(name: str, inputs: int, outputs: int) -> None:
        rand(f"{name}.weight", outputs, inputs, scale=1.5 * inputs**-0.5)
        rand(f"{name}.bias", outputs)

    def norm(name: str) -> None:
        rand(f"{name}.weight", WIDTH, around=1.0)
        rand(f"{name}.bias", WIDTH)

    seen = "blip.visual_encoder"
    rand(f"{seen}.cls_token", 1, 1, WIDTH, scale=1.0)
    rand(f"{seen}.pos_embed", 1, (SIDE // PATCH) ** 2 + 1, WIDTH, scale=0.5)
    rand(f"{seen}.patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH)
    rand(f"{seen}.patch_embed.proj.bias", WIDTH)
    for i in range(DEPTH):
        block = f"{seen}.blocks.{i}"
        for name in ("norm1", "norm2"):
            norm(f"{block}.{name}")
        for name, inputs, outputs in (
            ("attn.qkv", WIDTH, 3 * WIDTH), ("attn.proj", WIDTH, WIDTH), ("mlp.fc1", WIDTH, 4 * WIDTH),
            ("mlp.fc2", 4 * WIDTH, WIDTH),
        ):  # fmt: skip
            linear(f"{block}.{name}", inputs, outputs)
    norm(f"{seen}.norm")
    read = "blip.text_encoder"
    rand(f"{read}.embeddings.word_embeddings.weight", len(VOCABULARY) + 2, WIDTH, scale=1.0)
    rand(f"{read}.embeddings.position_embeddings.weight", 40, WIDTH, scale=0.5)
    norm(f"{read}.embeddings.LayerNorm")
    found[f"{read}.embeddings.position_ids"] = torch.arange(40)[None]
    for i in range(DEPTH):
        layer = f"{read}.encoder.layer.{i}"
        for attention in ("attention", "crossattention"):
            for name in ("self.query", "self.key", "self.value", "output.dense"):
                linear(f"{layer}.{attention}.{name}", WIDTH, WIDTH)
            norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", WIDTH, 2 * WIDTH)
        linear(f"{layer}.output.dense", 2 * WIDTH, WIDTH)
        norm(f"{layer}.output.LayerNorm")
    linear("blip.vision_proj", WIDTH, 16)
    linear("blip.text_proj", WIDTH, 16)
    for place, (inputs, outputs) in zip((0, 2, 4, 6, 7), ((WIDTH, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))):
        linear(f"mlp.layers.{place}", inputs, outputs)
    return found


def images(seed: int = 0) -> Tensor:
    """Two images [2, 3, 45, 70] with whole levels of 255, and structure at several scales."""
    draw = np.random.RandomState(seed)
    coarse, fine = draw.rand(2, 3, 5, 7).repeat(9, 2).repeat(10, 3), draw.rand(2, 3, 45, 70)
    return torch.from_numpy(((0.7 * coarse + 0.3 * fine) * 255).round().astype(np.float32) / 255)


def tokenizer(folder: Path) -> Path:
    """A BERT tokenizer of single letters, as a folder of transformers."""
    from transformers import BertTokenizer

    BertTokenizer(vocab={token: i for i, token in enumerate(VOCABULARY)}).save_pretrained(folder)
    return folder
