"""The contract of a vision-language judge: questions about images, answered in text or by probabilities of words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from bench.errors import MissingError, UsageError
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


@dataclass(frozen=True)
class Reply:
    """A reply. `failure` says why there is none, for example because an endpoint refuses the image; empty otherwise."""

    text: str = ""
    probabilities: list[float] = field(default_factory=list)
    """One for each of the question's words."""
    failure: str = ""


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


def vision_judge(task: str, sources: dict[str, str], probable: bool) -> VisionJudge:
    """The judge that the settings scorers.<task> choose; `probable`: whether it is asked for probabilities.

    Raises MissingError if none is set, UsageError for settings that do not fit together.
    """
    from tasks.vision.endpoint import EndpointJudge
    from tasks.vision.local import LocalJudge

    judge = sources.get("judge")
    if judge is None:
        raise MissingError(f"{task} needs a vision-language model: set scorers.{task}.judge to {SETTINGS['judge']}")
    given = [key for key in AT_ENDPOINT if key in sources]
    if judge.startswith(("http://", "https://")):
        placed = [key for key in devices(BATCH) if key in sources and key != "device"]
        if placed:
            raise UsageError(f"scorers.{task}.{placed[0]} does nothing for a judge behind an endpoint: leave it out")
        return EndpointJudge(task, judge, sources, probable)
    if given:
        raise UsageError(f"scorers.{task}.{given[0]} does nothing for a judge that runs here: leave it out")
    return LocalJudge(judge, sources)
