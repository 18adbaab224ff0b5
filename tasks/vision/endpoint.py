"""A vision-language judge behind an OpenAI-compatible endpoint (vLLM, SGLang, a provider's service).

Requests are POST URL/chat/completions with the image as a PNG data URL, at temperature 0. Probabilities are those of
the endpoint's most probable first tokens (`top_logprobs`): a word outside them counts as 0, and a word is recognised by
its text, whatever the model's tokens are.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, MissingError, UsageError, one_line, unknown
from bench.lazy import torch
from bench.scoring.client import JsonClient, RefusedError
from bench.scoring.remote import encode
from tasks.vision.judge import REQUESTS, Question, Reply

if TYPE_CHECKING:
    from torch import Tensor

TOP = 20
"""Number of most probable tokens that are asked for: the most that OpenAI's interface allows."""
GREETING = "Answer with the word yes."
"""The first question, which shows whether the endpoint has what is needed."""
UNUSABLE = (400, 413, 415, 422)
"""HTTP statuses by which an endpoint refuses one image or question, after it has answered others."""


class EndpointJudge:
    """Asks the endpoint of `scorers.<task>.judge`, several questions at the same time."""

    elsewhere = True

    def __init__(self, task: str, url: str, sources: dict[str, str], probable: bool):
        """`probable`: whether the endpoint must give probabilities of tokens."""
        self.setting = f"scorers.{task}"
        asked = sources.get("requests", str(REQUESTS))
        if not asked.isdecimal() or not int(asked):
            raise UsageError(f"{self.setting}.requests is a number, at least 1, not {asked!r}")
        self.requests, self.model, self.probable = int(asked), sources.get("model"), probable
        headers = {}
        if variable := sources.get("key"):
            if not (key := os.environ.get(variable, "").strip()):
                raise MissingError(
                    f"the environment variable {variable}, which {self.setting}.key names, is not set: export the "
                    "endpoint's API key in it"
                )
            headers["Authorization"] = f"Bearer {key}"
        cure = f"start the model's server, or correct {self.setting}.judge"
        self.client = JsonClient(url, f"{self.setting}.judge", cure, headers)

    @cached_property
    def name(self) -> str:
        """The model as the endpoint calls it in its answer to a first question.

        Raises MissingError if the endpoint does not answer, UsageError for a model that it does not have or one
        without the probabilities that are needed.
        """
        offered = self._offered()
        if self.model is None and len(offered) != 1:
            raise UsageError(f"set {self.setting}.model to the judge's name at {self.client.url}{_list(offered)}")
        if self.model is None:
            self.model = offered[0]
        if offered and self.model not in offered:
            raise unknown(f"model at {self.client.url}", self.model, offered)
        words = ("yes",) if self.probable else ()
        answer = self._ask(torch.full((1, 3, 56, 56), 0.5), Question(0, GREETING, words, 4))
        if words:
            self._probabilities(answer, words)
        served = answer.get("model")
        return f"endpoint-{served if isinstance(served, str) and served else self.model}"

    def reply(self, images_BCHW: Tensor, questions: list[Question]) -> list[Reply]:
        """Replies in the order of the questions. Raises as `name`, and MissingError if the endpoint goes away."""
        _ = self.name
        with ThreadPoolExecutor(self.requests) as pool:
            return list(pool.map(lambda asked: self._reply(images_BCHW, asked), questions))

    def _reply(self, images_BCHW: Tensor, asked: Question) -> Reply:
        try:
            answer = self._ask(images_BCHW[asked.image : asked.image + 1], asked)
        except RefusedError as error:
            if error.code in UNUSABLE:
                return Reply(failure=one_line(error))
            raise
        if asked.words:
            return Reply(probabilities=self._probabilities(answer, asked.words))
        text = _choice(answer).get("message", {}).get("content")
        if not isinstance(text, str):
            return Reply(failure=f"{self.client.url} answered without text: {str(_choice(answer))[:200]}")
        return Reply(text)

    def _ask(self, image_1CHW: Tensor, asked: Question) -> dict[str, Any]:
        """The endpoint's answer to one question."""
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encode(image_1CHW)[0]}"}}
        messages: list[dict[str, Any]] = []
        if asked.system:
            messages.append({"role": "system", "content": asked.system})
        messages.append({"role": "user", "content": [image, {"type": "text", "text": asked.text}]})
        content: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": 0}
        if asked.words:
            content |= {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        else:
            content["max_tokens"] = asked.length
        try:
            return self.client.ask("/chat/completions", content)
        except RefusedError as error:
            if error.code in (401, 403):
                raise MissingError(
                    f"{one_line(error)}: set {self.setting}.key to the environment variable with the API key"
                ) from error
            raise

    def _probabilities(self, answer: dict[str, Any], words: tuple[str, ...]) -> list[float]:
        """The probability of each word as the first token. Raises UsageError for an answer without probabilities."""
        try:
            (first, *_) = _choice(answer)["logprobs"]["content"]
            top = {entry["token"]: math.exp(entry["logprob"]) for entry in first["top_logprobs"]}
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.client.url} gives no probabilities of tokens (top_logprobs), which this score is made of: use "
                "an endpoint that does, or a judge that runs here"
            ) from error
        return [top.get(word, 0.0) for word in words]

    def _offered(self) -> list[str]:
        """Names of the endpoint's models; empty if it has no list of them."""
        try:
            return [entry["id"] for entry in self.client.ask("/models", None)["data"]]
        except RefusedError as error:
            if error.code in (401, 403):
                raise MissingError(
                    f"{one_line(error)}: set {self.setting}.key to the environment variable with the API key"
                ) from error
            return []
        except (KeyError, TypeError):
            return []


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    """The first choice of an answer. Raises BenchError if there is none."""
    try:
        choice = answer["choices"][0]
        if not isinstance(choice, dict):
            raise TypeError(f"a choice is {type(choice).__name__}")
        return choice
    except (KeyError, IndexError, TypeError) as error:
        raise BenchError(f"the endpoint's answer has no choices: {str(answer)[:200]}") from error


def _list(names: list[str]) -> str:
    return f": one of {', '.join(names)}" if names else ", which lists no models"
