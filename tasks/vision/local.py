"""A vision-language judge that runs here: any of transformers' image-text-to-text models with a chat template."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, MissingError, UsageError, one_line
from bench.lazy import torch, without_gradients
from bench.scoring.pictures import to_bytes
from bench.weights.checkpoints import refuse_stand_ins, require_folder
from bench.weights.frozen import CURE, load_frozen, weights_name
from tasks.clip import placed
from tasks.vision.judge import BATCH, Question, Reply

if TYPE_CHECKING:
    from torch import Tensor

WHAT = "vision-language model"


class LocalJudge:
    """A model of transformers. Replies are greedy, with the model's own other generation settings."""

    elsewhere = False

    def __init__(self, source: str, sources: dict[str, str]):
        self.source = source
        how = placed(sources, BATCH)
        self.device, self.precision = how.get("device", "cpu"), how.get("precision", "float32")
        self.batch: int = how["batch"]

    @cached_property
    def name(self) -> str:
        """Kind of model, hash of its weights, precision, and -pil if images are resized by PIL, not torchvision."""
        kind = self._class.config_class.model_type
        resized = "-pil" if type(self.processor.image_processor).__name__.endswith("Pil") else ""
        return f"{kind}-{weights_name(self.source, self.precision)}{resized}"

    @cached_property
    def _class(self) -> Any:
        """The class of transformers that `source` names. Raises UsageError for a model of another kind."""
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        if Path(self.source).is_dir():
            require_folder(Path(self.source), WHAT)
        try:
            config = AutoConfig.from_pretrained(self.source)
        except (OSError, ValueError) as error:
            raise MissingError(f"no {WHAT} at {self.source!r}: {one_line(error)}; {CURE}") from error
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise UsageError(
                f"{self.source!r} is not a {WHAT}: transformers has no image-text-to-text model of type "
                f"{config.model_type!r}"
            )
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]

    @cached_property
    def model(self) -> Any:
        """The model, loaded at first use."""
        return load_frozen(self._class, self.source, self.device, WHAT, self.precision)

    @cached_property
    def processor(self) -> Any:
        """Its processor. Raises MissingError for missing files or packages, UsageError without a chat template."""
        from transformers import AutoProcessor

        if Path(self.source).is_dir():
            refuse_stand_ins(Path(self.source), "processor")
        try:
            found = AutoProcessor.from_pretrained(self.source)
        except ImportError as error:
            raise MissingError(f"the processor of {self.source!r} needs a package: {one_line(error)[:200]}") from error
        except (OSError, ValueError) as error:
            raise MissingError(f"no processor at {self.source!r}: {one_line(error)}") from error
        if not getattr(found, "chat_template", None):
            raise UsageError(f"{self.source!r} has no chat template, so it cannot be asked: use a model with one")
        found.tokenizer.padding_side = "left"  # the reply continues the last token of every question
        return found

    def reply(self, images_BCHW: Tensor, questions: list[Question]) -> list[Reply]:
        """Replies in the order of the questions, in batches of questions of the same kind."""
        kinds: dict[tuple, list[int]] = {}
        markers = self._markers
        replies: dict[int, Reply] = {}
        for place, asked in enumerate(questions):
            if marker := next((marker for marker in markers if marker in asked.text), ""):
                replies[place] = Reply(failure=f"the question contains {marker}, one of the model's own tokens")
                continue
            kinds.setdefault((bool(asked.words), 0 if asked.words else asked.length), []).append(place)
        pictures = to_bytes(images_BCHW)
        for (probable, length), places in kinds.items():
            for start in range(0, len(places), self.batch):
                part = places[start : start + self.batch]
                inputs = self._inputs(pictures, [questions[place] for place in part])
                if probable:
                    found = self._probable(inputs, [questions[place].words for place in part])
                else:
                    found = self._written(inputs, length)
                replies |= dict(zip(part, found))
        return [replies[place] for place in range(len(questions))]

    @property
    def _markers(self) -> list[str]:
        """Tokens with which the model structures a conversation, and which no prompt may contain."""
        special = [str(token) for token in self.processor.tokenizer.all_special_tokens]
        return [*special, *filter(None, [getattr(self.processor, "image_token", "")])]

    def _inputs(self, pictures: Any, questions: list[Question]) -> Any:
        from PIL import Image

        chats, images = [], []
        for asked in questions:
            chat: list[dict] = []
            if asked.system:
                chat.append({"role": "system", "content": [{"type": "text", "text": asked.system}]})
            content = [{"type": "image"}, {"type": "text", "text": asked.text}]
            chat.append({"role": "user", "content": content[::-1] if asked.text_first else content})
            chats.append(self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
            images.append([Image.fromarray(pictures[asked.image])])
        try:
            inputs = self.processor(text=chats, images=images, padding=True, return_tensors="pt")
        except (ValueError, RuntimeError) as error:
            raise BenchError(f"the processor of {self.source!r} failed: {one_line(error)}") from error
        inputs = inputs.to(self.device)
        for name, tensor in inputs.items():
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                inputs[name] = tensor.to(self.model.dtype)
        return inputs

    @without_gradients
    def _probable(self, inputs: Any, words: list[tuple[str, ...]]) -> list[Reply]:
        """The probability of each word's first token as the reply's first token, by the softmax over all tokens."""
        logits_BV = self.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        probabilities_BV = logits_BV.softmax(-1).cpu()
        replies = []
        for row_V, mine in zip(probabilities_BV, words):
            firsts = [self.processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in mine]
            # A token that several spellings start with counts once.
            values = [0.0 if token in firsts[:i] else float(row_V[token]) for i, token in enumerate(firsts)]
            replies.append(Reply(probabilities=values))
        return replies

    @without_gradients
    def _written(self, inputs: Any, length: int) -> list[Reply]:
        written = self.model.generate(**inputs, max_new_tokens=length, do_sample=False)
        texts = self.processor.batch_decode(
            written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return [Reply(text) for text in texts]
