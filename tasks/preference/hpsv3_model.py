"""HPSv3's network: Qwen2-VL and a head, read from the released HPSv3.safetensors.

The file has the names of transformers 4.45, which the published code pins, and holds no configuration: that of
Qwen2-VL-7B-Instruct is used, of which HPSv3 is a fine-tuning.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import DamagedError
from bench.lazy import torch
from bench.weights.checkpoints import cause_of, state_dict
from bench.weights.frozen import check_placement, load_config, load_tensors, require_numbers
from bench.weights.hub import require

if TYPE_CHECKING:
    from torch import Tensor

FILE = "HPSv3.safetensors"
WHAT = "HPSv3 checkpoint"
RENAMED = ((r"^model\.", "language_model."),)
"""Transformers 5 calls the language model by its name. The image encoder is `visual` in both."""
HEAD = "rm_head."
LAYERS = (0, 3, 5)
"""Indices of the head's linear layers. Between them are ReLUs, and dropout after the first."""
UNUSED = "lm_head."
"""The language model's own head, which the file holds too."""
WORDS = "language_model.embed_tokens.weight"


def checkpoint_file(source: str) -> Path:
    """The file at `source`: a file, a folder that holds FILE, or a repository on the hub, from which it is downloaded.

    Raises MissingError, with the cure, for a repository that cannot be reached.
    """
    path = Path(source)
    if path.is_dir():
        return path / FILE
    return path if path.is_file() or path.suffix else require(source, FILE)


class HpsV3Model:
    """The frozen network on its device. The head computes in float32 at any precision, as published."""

    def __init__(self, file: Path, base: str, device: str, precision: str):
        """`base`: hub id or folder with the configuration of the Qwen2-VL that was fine-tuned.

        Raises MissingError for missing files, DamagedError for a file of something else or with wrong shapes, and
        UsageError for another kind of base, an unknown precision or an unknown device.
        """
        from transformers import Qwen2VLModel

        check_placement(device, precision, WHAT)  # before 17 GB are read
        config = load_config(Qwen2VLModel, base, "Qwen2-VL")
        tensors = state_dict(file, WHAT)
        self.head = read_head(tensors, file).to(device)
        tensors = {renamed(key): value for key, value in tensors.items() if not key.startswith((HEAD, UNUSED))}
        if WORDS not in tensors:
            raise DamagedError(f"{file} is not a valid {WHAT}: it lacks 'model.embed_tokens.weight'")
        # The published code cuts the vocabulary to the tokenizer's, which is a little smaller.
        config.text_config.vocab_size = len(tensors[WORDS])
        where = f"{file}, read with the configuration of {base},"
        self.body = load_tensors(Qwen2VLModel, config, tensors, where, device, WHAT, precision)
        for name, buffer in self.body.named_buffers():
            if name.endswith("inv_freq"):
                # The published code casts the whole network to bfloat16, in training too, and with it the frequencies
                # of the rotary positions: an error of 0.2%, which is radians after a thousand tokens.
                buffer.copy_(buffer.bfloat16())

    @property
    def config(self):
        """The Qwen2VLConfig, with the size of the file's vocabulary."""
        return self.body.config

    def __call__(self, patches: Tensor, grids: Tensor, words: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        """Mean of the score and logarithm of its standard deviation, [B, 2] float32, read at the token `at` [B].

        `patches`: those of all images, [sum of patches, values of a patch]; `grids`: (1, rows, columns) of each image's
        patches [B, 3]; `words` and `mask`: token ids and which of them are not padding, [B, L].
        """
        batch, length = words.shape
        # Positions count tokens, of images too. That is what transformers 4.45 computes in a forward pass without
        # generation, so HPSv3 was trained with it; Qwen2-VL itself has positions in two dimensions for images.
        positions = torch.arange(length, device=words.device).expand(3, batch, length)
        hidden = self.body(
            input_ids=words, attention_mask=mask, position_ids=positions, pixel_values=patches, image_grid_thw=grids,
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        return self.head(hidden[torch.arange(batch, device=at.device), at].float())


def renamed(key: str) -> str:
    """The name of a tensor in transformers' Qwen2VLModel."""
    for pattern, name in RENAMED:
        key = re.sub(pattern, name, key)
    return key


def read_head(tensors: dict[str, Tensor], file: Path) -> torch.nn.Sequential:
    """The head in float32. Raises DamagedError for tensors of something else."""
    layers: list[torch.nn.Module] = []
    for place in LAYERS:
        try:
            parts = {kind: tensors[f"{HEAD}{place}.{kind}"].float() for kind in ("weight", "bias")}
            require_numbers({f"{HEAD}{place}.{kind}": part for kind, part in parts.items()}, file)
            layers.append(torch.nn.Linear(parts["weight"].shape[1], parts["weight"].shape[0]))
            layers[-1].load_state_dict(parts)
        except KeyError as error:
            raise DamagedError(f"{file} is not a valid {WHAT}: it lacks {error.args[0]!r}") from error
        except (IndexError, RuntimeError) as error:
            raise DamagedError(f"{file} is not a valid {WHAT}: {cause_of(error)}") from error
        layers.append(torch.nn.ReLU())
    return torch.nn.Sequential(*layers[:-1]).requires_grad_(False)
