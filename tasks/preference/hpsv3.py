"""HPSv3 (arXiv 2508.03789): Qwen2-VL-7B reads how to judge, the prompt and the image; a head gives the score's mean.

Source: github.com/MizzenAI/HPSv3, MIT. Its package pins transformers 4.45; the same is computed here by the installed
one (hpsv3_model.py). The instruction, without which the weights are of no use, is read from the package's own file.
"""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import MissingError, UsageError
from bench.hashing import sampled_hash, text_hash
from bench.lazy import torch
from bench.weights.checkpoints import require_weights
from tasks.clip import devices, normalise, placed
from tasks.official_scripts import literal
from tasks.preference.added_tokens import extended_tokenizer
from tasks.preference.hpsv3_model import FILE, WHAT, HpsV3Model, checkpoint_file
from tasks.resizing import Resize, ResizingScorer

if TYPE_CHECKING:
    from torch import Tensor

SCRIPT = "hpsv3/dataset/data_collator_qwen.py"
HASH = "f7192beafb"
"""Hash of the package's instruction with which the weights were trained."""
BEFORE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>"
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
"""Qwen2-VL's own template around an image and a text."""
MODEL, BASE = "MizzenAI/HPSv3", "Qwen/Qwen2-VL-7B-Instruct"
PRECISION, BATCH = "bfloat16", 8
"""Defaults, as published: the network has 8 billion weights."""
SOURCES = (
    {
        "model": f"file {FILE}, or hub id of a repository with it; default {MODEL}",
        "instruction": f"file {SCRIPT} of the package hpsv3 1.0.0 (pip download hpsv3==1.0.0 --no-deps)",
        "base": f"configuration and tokenizer of the fine-tuned Qwen2-VL; default {BASE}",
    }
    | devices(BATCH)
    | {"precision": "bfloat16 (default, as published), float32 or float16"}
)
PIXELS = 256 * 28 * 28
"""Images are resized to about this many pixels, large ones to at most as many."""
REWARD, IMAGE = "<|Reward|>", "<|image_pad|>"
"""The token at which the score is read, which is added to the tokenizer, and the one that an image's tokens replace."""


class HpsV3Judge(ResizingScorer):
    """Human preference score, version 3: about 0 to 15, and below 0 for some bad images."""

    metric = "hpsv3"
    # The model is asked for a rating from 0 to 10, but good images exceed 10: the paper's best generators average 10.5.
    bounds = (0.0, 15.0)

    def __init__(self, sources: dict[str, str]):
        self.source, self.base = sources.get("model", MODEL), sources.get("base", BASE)
        if "instruction" not in sources:
            raise MissingError(
                f"HPSv3 needs its instruction: set the source instruction to the {SOURCES['instruction']}"
            )
        self.script = Path(sources["instruction"])
        how = {"device": "cpu", "precision": PRECISION} | placed(sources, BATCH)
        self.device: str = how["device"]
        self.precision: str = how["precision"]
        self.batch: int = how["batch"]

    @cached_property
    def file(self) -> Path:
        """The checkpoint, downloaded for a hub id. Raises MissingError without it."""
        file = checkpoint_file(self.source)
        require_weights(file, WHAT)
        return file

    @cached_property
    def name(self) -> str:
        """Metric, weights, and the precision unless it is float32."""
        return f"hpsv3-{file_hash(self.file)}" + ("" if self.precision == "float32" else f"-{self.precision}")

    @cached_property
    def model(self) -> HpsV3Model:
        """The network, loaded at first use."""
        return HpsV3Model(self.file, self.base, self.device, self.precision)

    @cached_property
    def tokenizer(self):
        """Qwen2-VL's tokenizer with the token for the reward. Raises MissingError for another model's."""
        vocabulary = self.model.config.text_config.vocab_size
        tokenizer = extended_tokenizer(self.base, [REWARD], vocabulary, "HPSv3", BASE)
        tokenizer.padding_side = "right"
        return tokenizer

    def _scores(self, images_BCHW: Tensor, texts: list[str], resize: Resize) -> Tensor:
        for text in texts:
            refuse_markers(text)
        vision, found = self.model.config.vision_config, []
        for start in range(0, len(texts), self.batch):
            here = slice(start, start + self.batch)
            patches, grids = patched(images_BCHW[here], vision.patch_size, vision.spatial_merge_size, resize)
            count = int(grids[0].prod()) // vision.spatial_merge_size**2
            tokens = self.tokenizer(
                [self.conversation(text, count) for text in texts[here]], padding=True, return_tensors="pt"
            )
            words = tokens["input_ids"]
            at = (words == self.tokenizer.convert_tokens_to_ids(REWARD)).int().argmax(1)
            inputs = (patches, grids, words, tokens["attention_mask"], at)
            found.append(self.model(*(tensor.to(self.device) for tensor in inputs))[:, 0])
        return torch.cat(found)

    def conversation(self, text: str, count: int) -> str:
        """What the model reads about a prompt and an image of `count` tokens. Raises UsageError for another script."""
        asked, ending = (literal(self.script, name) for name in ("INSTRUCTION", "prompt_with_special_token"))
        if (found := text_hash([asked, ending])) != HASH:
            raise UsageError(f"{self.script} has another instruction ({found}) than hpsv3 1.0.0 ({HASH}): use {SCRIPT}")
        return BEFORE.replace("{image}", IMAGE * count) + asked.format(text_prompt=text) + ending + AFTER


def patched(images_BCHW: Tensor, side: int, merged: int, resize: Resize) -> tuple[Tensor, Tensor]:
    """An image batch as Qwen2-VL takes it: patches [B * patches, 3 * 2 * side * side], and their grids [B, 3].

    Blocks of `merged` x `merged` patches are contiguous, as the network merges them to one token. Each patch is there
    twice, because the network expects two frames of a video.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = images_BCHW.shape[-2:]
    size = smart_resize(height, width, side * merged, min_pixels=PIXELS, max_pixels=PIXELS)
    images_BCHW = normalise(resize(images_BCHW, size))
    batch, (rows, columns) = len(images_BCHW), (edge // side for edge in size)
    blocks = images_BCHW.reshape(batch, 3, rows // merged, merged, side, columns // merged, merged, side)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :].expand(*[-1] * 6, 2, -1, -1)
    return blocks.reshape(batch * rows * columns, -1), torch.tensor([[1, rows, columns]] * batch)


@cache
def file_hash(file: Path) -> str:
    """A hash of the checkpoint, which has 17 GB."""
    return sampled_hash([file])


def refuse_markers(text: str) -> None:
    """Raise UsageError for a prompt with one of the tokens whose places in the conversation matter."""
    for marker in (REWARD, IMAGE):
        if marker in text:
            raise UsageError(f"HPSv3 cannot score a prompt that contains {marker}: remove it from {text!r}")
