"""A vision-language judge behind an OpenAI-compatible endpoint (vLLM, SGLang, a provider's service).

Requests are POST URL/chat/completions with the image as a PNG data URL, at temperature 0. Probabilities are those of
the endpoint's most probable first tokens (`top_logprobs`): a word outside them counts as 0, and a word is recognised by
its text, whatever the model's tokens are.
"""

from __future__ import annotations

import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, MissingError, UsageError, one_line, unknown
from bench.lazy import torch
from bench.scoring.client import BUSY, JsonClient, RefusedError
from bench.scoring.remote import encode
from tasks.vision.judge import REQUESTS, Question, Reply

if TYPE_CHECKING:
    from torch import Tensor

TOP = 20
"""Number of most probable tokens that are asked for: the most that OpenAI's interface allows."""
GREETING = "Answer with the word yes."
"""The first question, which shows whether the endpoint has what is needed."""
YES = ("yes", "Yes", " yes", " Yes")
LIKELY = 0.1
"""Least probability of a yes after the first question."""
ROUNDING = 1e-3
"""How far a logarithm of a probability may be above 0."""
SHORTEST = 8
"""Least length of a key, so that masking it does not garble texts."""
BROKEN = (408, 500, 529)
"""Further HTTP statuses after which a request is repeated: providers have passing failures."""
GREETING_S = 60
"""Timeout of the first answer, after which it is asked for again a few times: a model may still be loading."""


class EndpointJudge:
    """Asks the endpoint of `scorers.<task>.judge`, several questions at the same time."""

    elsewhere = True

    def __init__(self, task: str, url: str, sources: dict[str, str], probable: bool):
        """`probable`: whether the endpoint must give probabilities of tokens."""
        self.setting = f"scorers.{task}"
        asked = sources.get("requests", str(REQUESTS))
        if not re.fullmatch("[1-9][0-9]{0,2}", asked):
            raise UsageError(f"{self.setting}.requests is a number from 1 to 999, not {asked!r:.40}")
        self.requests, self.model, self.probable = int(asked), sources.get("model"), probable
        key = ""
        if variable := sources.get("key"):
            if not (key := os.environ.get(variable, "").strip()):
                raise MissingError(
                    f"the environment variable {variable}, which {self.setting}.key names, is not set: export the "
                    "endpoint's API key in it"
                )
            if len(key) < SHORTEST or not re.fullmatch("[!-~]+", key):
                raise UsageError(
                    f"the environment variable {variable} holds no API key: a key has no spaces or line ends"
                )
        cure = f"start the model's server, or correct {self.setting}.judge"
        self.client = JsonClient(url, f"{self.setting}.judge", cure, key, (*BUSY, *BROKEN))

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
        words = YES if self.probable else ()
        answer = self._ask(torch.full((1, 3, 56, 56), 0.5), Question(0, GREETING, words, 4), GREETING_S)
        said = self._probabilities(answer, words) if words else []
        text = "" if words else self._text(answer) or ""
        if sum(said) < LIKELY and not re.match(r"\W*yes\b", text, re.IGNORECASE):
            shown = f"gives it a probability of {sum(said):.2g}" if words else f"says {text!r:.60}"
            raise UsageError(
                f"the judge at {self.client.url} cannot be asked: told to answer with the word yes, it {shown}. A "
                "model that thinks first, or tokens without their text, do not work"
            )
        served = answer.get("model")
        named = served if isinstance(served, str) and served else str(self.model)
        return f"endpoint-{re.sub('[^!-~]', '?', named)[:100]}"

    def reply(self, images_BCHW: Tensor, questions: list[Question]) -> list[Reply]:
        """Replies in the order of the questions. Raises as `name`, and MissingError if the endpoint goes away."""
        _ = self.name
        with ThreadPoolExecutor(self.requests) as pool:
            return list(pool.map(lambda asked: self._reply(images_BCHW, asked), questions))

    def _reply(self, images_BCHW: Tensor, asked: Question) -> Reply:
        """One reply; a failure if the endpoint answers, but not with one, so that the other images keep theirs."""
        try:
            answer = self._ask(images_BCHW[asked.image : asked.image + 1], asked)
            if asked.words:
                return Reply(probabilities=self._probabilities(answer, asked.words))
        except MissingError:
            raise
        except BenchError as error:
            return Reply(failure=one_line(error))
        text = self._text(answer)
        return Reply(text) if text is not None else Reply(failure=f"{self.client.url} answered without text")

    def _text(self, answer: dict[str, Any]) -> str | None:
        """The text of an answer; None if it has none."""
        message = _choice(answer).get("message")
        text = message.get("content") if isinstance(message, dict) else None
        return text if isinstance(text, str) else None

    def _ask(self, image_1CHW: Tensor, asked: Question, timeout_s: float | None = None) -> dict[str, Any]:
        """The endpoint's answer to one question."""
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encode(image_1CHW)[0]}"}}
        messages: list[dict[str, Any]] = []
        if asked.system:
            messages.append({"role": "system", "content": asked.system})
        content = [image, {"type": "text", "text": asked.text}]
        messages.append({"role": "user", "content": content[::-1] if asked.text_first else content})
        request: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": 0}
        if asked.words:
            request |= {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        else:
            request["max_tokens"] = asked.length
        return self._request("/chat/completions", request, timeout_s)

    def _request(self, path: str, content: dict[str, Any] | None, timeout_s: float | None = None) -> dict[str, Any]:
        """The endpoint's answer. Raises MissingError, naming the setting, if it asks for a key."""
        try:
            return self.client.ask(path, content, timeout_s)
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
            top: dict[str, float] = {}
            for entry in first["top_logprobs"]:
                token, logprob = entry["token"], entry["logprob"]
                if not isinstance(token, str) or isinstance(logprob, bool) or not logprob <= ROUNDING:
                    raise ValueError(f"a token {token!r:.40} has the logarithm of probability {logprob!r:.40}")
                # SentencePiece writes a space as a low line; two tokens may have the same text.
                text = token.replace("\u2581", " ")
                top[text] = top.get(text, 0.0) + min(math.exp(logprob), 1.0)
            if not top:
                raise ValueError("there are no most probable tokens")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"{self.client.url} gives no probabilities of tokens (top_logprobs), which this score is made of: use "
                f"an endpoint that does, or a judge that runs here ({one_line(error)[:200]})"
            ) from error
        return [top.get(word, 0.0) for word in words]

    def _offered(self) -> list[str]:
        """Names of the endpoint's models; empty if it has no list of them."""
        try:
            names = [entry["id"] for entry in self._request("/models", None)["data"]]
            return [name for name in names if isinstance(name, str) and name]
        except (RefusedError, KeyError, TypeError):
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
