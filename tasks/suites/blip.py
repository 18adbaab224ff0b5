"""BLIP for visual questions (arXiv 2201.12086) as a judge: the probabilities of answers that are single words.

As in T2I-CompBench's script: images resized to the model's square (bicubic, by PIL), questions in lower case without
punctuation, [ENC] as their first token, and the answer's first token predicted after [DEC].
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.lazy import torch, without_gradients
from bench.weights.frozen import load_frozen, load_processor, weights_name
from tasks.clip import normalise, placed
from tasks.resizing import through_pil
from tasks.vision.judge import Question, Reply

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "Salesforce/blip-vqa-capfilt-large"
"""transformers' copy of BLIP's model_base_vqa_capfilt_large.pth."""
BATCH = 16
VISION_EPS = 1e-6
"""BLIP's in its image encoder; transformers' copies say 1e-5."""
REMOVED = re.compile(r"[.!\"()*#:;~]")
MOST_WORDS, MOST_TOKENS = 50, 35


class BlipJudge:
    """A BlipForQuestionAnswering. Replies are probabilities of words; text is not written."""

    elsewhere = False

    def __init__(self, sources: dict[str, str]):
        self.source = sources.get("judge", MODEL)
        how = placed(sources, BATCH)
        self.device, self.precision = how.get("device", "cpu"), how.get("precision", "float32")
        self.batch: int = how["batch"]

    @cached_property
    def name(self) -> str:
        """Hash of the weights. Raises MissingError if they cannot be found."""
        return f"blip-vqa-{weights_name(self.source, self.precision)}"

    @cached_property
    def model(self) -> Any:
        """The model, loaded at first use."""
        from transformers import BlipForQuestionAnswering

        found = load_frozen(BlipForQuestionAnswering, self.source, self.device, "BLIP model", self.precision)
        for module in found.vision_model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = VISION_EPS
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, BERT's. Raises MissingError for missing files."""
        return load_processor(self.source)[0]

    def reply(self, images_BCHW: Tensor, questions: list[Question]) -> list[Reply]:
        """The probabilities of the words of each question, by the softmax over all tokens."""
        texts = [prepared(asked.text) for asked in questions]
        tokens = self.tokenizer(texts, truncation=True, max_length=MOST_TOKENS)["input_ids"]
        # Questions of equal length together: transformers 5 drops the mask of padding in BLIP's cross-attention.
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(tokens):
            by_length.setdefault(len(ids), []).append(place)
        pixels_BCHW = self._pixels(images_BCHW)
        replies: dict[int, Reply] = {}
        for places in by_length.values():
            for start in range(0, len(places), self.batch):
                part = places[start : start + self.batch]
                ids_BS = torch.tensor([tokens[place] for place in part], device=self.device)
                rows = self._probabilities(pixels_BCHW[[questions[place].image for place in part]], ids_BS)
                for place, row in zip(part, rows):
                    words = self.tokenizer.convert_tokens_to_ids(list(questions[place].words))
                    replies[place] = Reply(probabilities=[float(row[word]) for word in words])
        return [replies[place] for place in range(len(questions))]

    def _pixels(self, images_BCHW: Tensor) -> Tensor:
        side = self.model.config.vision_config.image_size
        return normalise(through_pil(images_BCHW, (side, side))).to(self.device, self.model.dtype)

    @without_gradients
    def _probabilities(self, pixels_BCHW: Tensor, ids_BS: Tensor) -> Tensor:
        """Probabilities [B, V] of the answer's first token."""
        decoder_start = self.model.config.text_config.bos_token_id
        ids_BS[:, 0] = decoder_start + 1  # BLIP's [ENC] is the token after [DEC]
        seen = self.model.vision_model(pixels_BCHW)[0]
        asked_BSD = self.model.text_encoder(ids_BS, encoder_hidden_states=seen, return_dict=True)[0]
        starts = torch.full((len(ids_BS), 1), decoder_start, device=self.device)
        found = self.model.text_decoder(starts, encoder_hidden_states=asked_BSD, return_dict=True)
        return found.logits[:, 0].float().softmax(-1).cpu()


def prepared(question: str) -> str:
    """A question as BLIP was trained on: lower case, without punctuation but question marks, at most 50 words."""
    words = REMOVED.sub("", question.lower()).rstrip(" ").split(" ")
    return " ".join(words[:MOST_WORDS])
