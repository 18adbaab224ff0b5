"""The contract of a vision-language judge: questions about images, answered in text or by probabilities of words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from bench.errors import UsageError
from tasks.clip import devices

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
"""Questions per forward of a model that runs here."""
REQUESTS = 16
"""Requests that are sent to an endpoint at the same time."""
SETTINGS = {
    "judge": (
        "vision-language model that judges: a folder or hub id (transformers), or the address of an OpenAI-compatible "
        "endpoint, such as http://localhost:8000/v1"
    ),
    "model": "name of the model at the endpoint",
    "key": "environment variable with the endpoint's API key, which is never stored",
    "requests": f"requests to the endpoint at the same time; default {REQUESTS}",
    **devices(BATCH),
}
"""Settings of every scorer with a vision-language judge."""
AT_ENDPOINT = ("model", "key", "requests")
"""Settings that only an endpoint has."""


@dataclass(frozen=True)
class Question:
    """A question about one image of a batch.

    The reply is text of at most `length` tokens; or, if `words` are given, how probable each of them is as the first
    token of the reply.
    """

    image: int
    """Its place in the batch."""
    text: str
    words: tuple[str, ...] = ()
    length: int = 128
    system: str = ""
    """A system message that comes before the question; empty for none."""
    text_first: bool = False
    """Whether the question comes before the image instead of after it."""


@dataclass(frozen=True)
class Reply:
    """A reply. `failure` says why there is none, for example because an endpoint refuses the image; empty otherwise."""

    text: str = ""
    probabilities: list[float] = field(default_factory=list)
    """One for each of the question's words."""
    failure: str = ""


def check_key(setting: str, sources: Mapping[str, str], name: str = "key") -> None:
    """Raise UsageError, without its value, for a setting of the key that is no name of an environment variable.

    Settings are stored with every run, and the key itself must not be.
    """
    if name in sources and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", sources[name]):
        raise UsageError(
            f"{setting}.{name} is the name of an environment variable, such as OPENAI_API_KEY; the key itself belongs "
            "in that variable, not in a setting"
        )


class VisionJudge(Protocol):
    """A vision-language model that replies to questions about images, the same to the same question."""

    @property
    def name(self) -> str:
        """Model and version; part of the scorer's name. Raises MissingError if there is no such model."""

    @property
    def elsewhere(self) -> bool:
        """Whether it leaves the devices of this process alone."""

    def reply(self, images_BCHW: Tensor, questions: list[Question]) -> list[Reply]:
        """One reply for each question about images [B, 3, H, W] in [0, 1]."""
