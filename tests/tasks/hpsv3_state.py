"""Random weights in the layout of the released HPSv3.safetensors, tiny, and the Qwen2-VL that they belong to."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

WIDTH, INNER, SEEN, DEPTH = 64, 96, 32, 2
"""Widths of the language model, of its feed-forward layers and of the image encoder, and their number of blocks."""
SIGNS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
BYTES = 256
WORDS = BYTES + len(SIGNS) + 1
"""Bytes, signs, and the token for the reward."""


def state(seed: int = 0) -> dict[str, Tensor]:
    """The tensors by their released names; NumPy's legacy generator gives the same numbers in every version."""
    draw = np.random.RandomState(seed).standard_normal
    found = {}

    def rand(name: str, *shape: int, scale: float = 0.1, around: float = 0.0) -> None:
        found[name] = torch.from_numpy((around + scale * draw(shape)).astype(np.float32))

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        rand(f"{name}.weight", outputs, inputs, scale=1.5 * inputs**-0.5)
        if bias:
            rand(f"{name}.bias", outputs)

    rand("visual.patch_embed.proj.weight", SEEN, 3, 2, 14, 14, scale=0.05)
    for i in range(DEPTH):
        block = f"visual.blocks.{i}"
        for name in ("norm1", "norm2"):
            rand(f"{block}.{name}.weight", SEEN, around=1.0)
            rand(f"{block}.{name}.bias", SEEN)
        for name, inputs, outputs in (
            ("attn.qkv", SEEN, 3 * SEEN), ("attn.proj", SEEN, SEEN), ("mlp.fc1", SEEN, 2 * SEEN), ("mlp.fc2", 2 * SEEN, SEEN),
        ):  # fmt: skip
            linear(f"{block}.{name}", inputs, outputs)
    rand("visual.merger.ln_q.weight", SEEN, around=1.0)
    rand("visual.merger.ln_q.bias", SEEN)
    linear("visual.merger.mlp.0", 4 * SEEN, 4 * SEEN)
    linear("visual.merger.mlp.2", 4 * SEEN, WIDTH)
    rand("model.embed_tokens.weight", WORDS, WIDTH, scale=1.0)
    for i in range(DEPTH):
        layer = f"model.layers.{i}"
        for name, outputs in (("q_proj", WIDTH), ("k_proj", WIDTH // 2), ("v_proj", WIDTH // 2)):
            linear(f"{layer}.self_attn.{name}", WIDTH, outputs)
        linear(f"{layer}.self_attn.o_proj", WIDTH, WIDTH, bias=False)
        linear(f"{layer}.mlp.gate_proj", WIDTH, INNER, bias=False)
        linear(f"{layer}.mlp.up_proj", WIDTH, INNER, bias=False)
        linear(f"{layer}.mlp.down_proj", INNER, WIDTH, bias=False)
        for name in ("input_layernorm", "post_attention_layernorm"):
            rand(f"{layer}.{name}.weight", WIDTH, around=1.0)
    rand("model.norm.weight", WIDTH, around=1.0)
    linear("lm_head", WIDTH, WORDS, bias=False)
    for place, (inputs, outputs) in zip((0, 3, 5), ((WIDTH, 1024), (1024, 16), (16, 2))):
        linear(f"rm_head.{place}", inputs, outputs)
    return found


def config() -> dict:
    """The config.json of the Qwen2-VL, flat as in its release, with more words than its tokenizer."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl",
        "attention_dropout": 0.0, "bos_token_id": BYTES, "eos_token_id": BYTES + 2, "hidden_act": "silu",
        "hidden_size": WIDTH, "initializer_range": 0.02, "intermediate_size": INNER, "max_position_embeddings": 32768,
        "max_window_layers": DEPTH, "num_attention_heads": 4, "num_hidden_layers": DEPTH, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False,
        "use_cache": True, "use_sliding_window": False, "vocab_size": WORDS + 13,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "image_token_id": BYTES + 5,
        "video_token_id": BYTES + 6, "vision_start_token_id": BYTES + 3, "vision_end_token_id": BYTES + 4,
        "vision_token_id": BYTES + 1,
        "vision_config": {
            "depth": DEPTH, "embed_dim": SEEN, "hidden_size": WIDTH, "in_chans": 3, "mlp_ratio": 2, "num_heads": 2,
            "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
        },
    }  # fmt: skip


def base(folder: Path) -> Path:
    """A folder with the Qwen2-VL's configuration and a tokenizer of bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words = [*sorted(ByteLevel.alphabet()), *SIGNS]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token=SIGNS[0], eos_token=SIGNS[2], unk_token=None)
    tokenizer.add_tokens(SIGNS, special_tokens=True)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config()))
    return folder
