"""Vision-language judges with random weights, saved in transformers' format, and an endpoint that answers as told."""

import base64
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from bench.scoring.pictures import from_file
from tasks.vision.endpoint import GREETING

CHAT = (
    "{% for message in messages %}[{{ message.role }}]{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}[assistant]"
)


def letters(*special: str) -> Any:
    """A tokenizer of bytes, as Llama's fast one, with special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def llava(folder: Path, template: str = CHAT) -> None:
    """A LLaVA of two layers with a CLIP of one, for images of 16 x 16 pixels."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = letters("<image>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
            projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=image, image_token_id=image,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # larger than an initial one, so that images and words matter
        parameter.data = parameter.data * 6 if parameter.ndim > 1 else parameter.data
    model.save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        pictures, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template or None,
    ).save_pretrained(folder)  # fmt: skip


def blip(folder: Path) -> None:
    """A BLIP for questions, with one layer in each part."""
    from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "green", "bench", "red", "car", "?", "yes", "no"]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    size = len(words) + 2  # [DEC] and [ENC], as in BLIP's checkpoints, which its tokenizer here does not list
    text = dict(
        vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        encoder_hidden_size=16, bos_token_id=size - 2, pad_token_id=0, sep_token_id=3, eos_token_id=3,
        max_position_embeddings=64, projection_dim=16,
    )  # fmt: skip
    sight = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    model = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=sight)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data * 20 if parameter.ndim > 1 else parameter.data
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


@dataclass(frozen=True)
class Asked:
    """What a request asks."""

    image: torch.Tensor
    """[3, H, W] in [0, 1]."""
    text: str
    system: str
    request: dict[str, Any]
    headers: dict[str, str]


Answer = Callable[[Asked], "str | dict[str, float] | tuple[int, str]"]
"""What to answer: a text, probabilities of first tokens, or (status, body) of an error."""


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint with one model, which answers as `answer` says."""

    answer: Answer
    models: list[str] = field(default_factory=lambda: ["tiny-judge"])
    served: str = "tiny-judge-2026-11-01"
    key: str = ""
    """The API key without which every request is refused."""
    greets: bool = True
    """Whether it has the probabilities that a judge's first question asks for."""
    greeting: "str | dict[str, float] | None" = None
    """Its answer to the first question instead of yes."""
    asked: list[Asked] = field(default_factory=list)

    def start(self) -> str:
        """Serve; the address."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def _send(self, status: int, content: object) -> None:
                body = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", f"http://127.0.0.1:1/{content}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _locked(self) -> bool:
                locked = bool(outer.key) and self.headers.get("Authorization") != f"Bearer {outer.key}"
                if locked:
                    self._send(401, {"error": {"message": "Incorrect API key provided"}})
                return locked

            def do_GET(self) -> None:
                if self._locked():
                    return
                listed = self.path == "/v1/models" and outer.models
                self._send(*((200, {"data": [{"id": name} for name in outer.models]}) if listed else (404, "not found")))

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self._locked():
                    return
                *before, last = content["messages"]
                picture, text = sorted(last["content"], key=lambda part: part["type"])
                data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"), validate=True)
                asked = Asked(
                    from_file(io.BytesIO(data), 2**24), text["text"], before[0]["content"] if before else "", content,
                    dict(self.headers),
                )  # fmt: skip
                first = asked.text == GREETING
                if not first:
                    outer.asked.append(asked)
                greeting = {"yes": 0.9} if content.get("logprobs") and outer.greets else "yes"
                greeting = greeting if outer.greeting is None else outer.greeting
                found = greeting if first else outer.answer(asked)
                if isinstance(found, tuple):
                    self._send(*found)
                    return
                if isinstance(found, dict) and "choices" in found:
                    self._send(200, found)
                    return
                choice: dict[str, Any] = {"message": {"role": "assistant", "content": found}}
                if isinstance(found, dict):
                    import math

                    top = [{"token": word, "logprob": math.log(p)} for word, p in found.items() if p > 0]
                    choice = {"message": {"content": "x"}, "logprobs": {"content": [{"token": "x", "top_logprobs": top}]}}
                self._send(200, {"model": outer.served, "choices": [choice]})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}/v1"
