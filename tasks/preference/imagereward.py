"""ImageReward (arXiv 2304.05977): BLIP reads the prompt while it sees the image, and a small head rates what it read.

The released ImageReward.pt is in the format of its own package, which pins an old timm. It is converted once to
transformers' BLIP (imagereward_weights.py), which computes the same. Source: github.com/THUDM/ImageReward, Apache-2.0.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING

from bench.errors import MissingError
from bench.lazy import torch
from bench.weights.frozen import load_frozen, weights_name
from tasks.clip import BATCH, central_square, normalise, placed
from tasks.preference.added_tokens import extended_tokenizer
from tasks.resizing import Resize, ResizingScorer

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER = "google-bert/bert-base-uncased"
MODELS = {
    "model": "folder with the converted ImageReward.pt (hub: THUDM/ImageReward)",
    "tokenizer": f"tokenizer of the model; default {TOKENIZER}",
}
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the head's output, by which scores are standardised."""
WORDS = 35
"""Tokens of a prompt, to which it is truncated or padded."""
ADDED = ("[DEC]", "[ENC]")
"""Tokens that BLIP adds to BERT's, in the order of their ids."""
WIDTHS = (1024, 128, 64, 16, 1)
"""Outputs of the head's linear layers. Between them there is only dropout and no nonlinearity."""


@cache
def model_class():
    """The class of the converted model: transformers' parts of BLIP and the head, without projections."""
    from transformers import BlipPreTrainedModel, BlipTextModel, BlipVisionModel

    class ImageReward(BlipPreTrainedModel):
        # In half precision a score would have two digits only.
        _keep_in_fp32_modules_strict = ("head",)

        def __init__(self, config):
            super().__init__(config)
            self.vision_model = BlipVisionModel(config.vision_config)
            self.text_encoder = BlipTextModel(config.text_config, add_pooling_layer=False)
            inputs = (config.text_config.hidden_size, *WIDTHS)
            self.head = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in zip(inputs, WIDTHS)))
            self.post_init()

        def forward(self, pixels, tokens):
            """Standardised scores, float32 [B], of pixel values [B, 3, side, side] for tokenised prompts [B, WORDS]."""
            seen = self.vision_model(pixel_values=pixels).last_hidden_state
            # The first token is [CLS]: BLIP's own matching head replaces it by [ENC], the published code does not.
            read = self.text_encoder(**tokens, encoder_hidden_states=seen).last_hidden_state[:, 0]
            return (self.head(read.float()).squeeze(1) - MEAN) / DEVIATION

    return ImageReward


class ImageRewardJudge(ResizingScorer):
    """ImageReward, about normally distributed over the images of its training prompts."""

    metric = "imagereward"
    # ReFL stops rewarding at 2 (its loss is relu(2 - score)), and scores are standardised around 0.
    bounds = (-2.0, 2.0)

    def __init__(self, sources: dict[str, str]):
        if "model" not in sources:
            raise MissingError(
                "ImageReward needs its weights: download ImageReward.pt (hub: THUDM/ImageReward), convert it (python "
                "-m tasks.preference.imagereward_weights CHECKPOINT.pt FOLDER) and set the source model to FOLDER"
            )
        self.source, self.words = sources["model"], sources.get("tokenizer", TOKENIZER)
        how = placed(sources, BATCH)
        self.device, self.precision = how.get("device", "cpu"), how.get("precision", "float32")
        self.batch: int = how["batch"]

    @property
    def name(self) -> str:
        """Metric and weights."""
        return f"imagereward-{weights_name(self.source, self.precision)}"

    @cached_property
    def model(self):
        """The model, loaded at first use."""
        return load_frozen(model_class(), self.source, self.device, "converted ImageReward model", self.precision)

    @cached_property
    def tokenizer(self):
        """BERT's tokenizer with BLIP's tokens. Raises MissingError for another model's."""
        vocabulary = self.model.config.text_config.vocab_size
        return extended_tokenizer(self.words, ADDED, vocabulary, "ImageReward", TOKENIZER)

    def _scores(self, images_BCHW: Tensor, texts: list[str], resize: Resize) -> Tensor:
        side, found = self.model.config.vision_config.image_size, []
        for start in range(0, len(texts), self.batch):
            here = slice(start, start + self.batch)
            tokens = self.tokenizer(
                texts[here], padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt"
            )
            read = {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}
            found.append(
                self.model(pixel_values(images_BCHW[here], side, resize).to(self.device, self.model.dtype), read)
            )
        return torch.cat(found)


def pixel_values(images_BCHW: Tensor, side: int, resize: Resize) -> Tensor:
    """What the image encoder takes, [B, 3, side, side]: the central square, its short edge resized to `side`.

    `resize`: `through_pil`, as published, or `straight_through`.
    """
    size, (top, left) = central_square(images_BCHW.shape[-2], images_BCHW.shape[-1], side)
    return normalise(resize(images_BCHW, size)[..., top : top + side, left : left + side])
