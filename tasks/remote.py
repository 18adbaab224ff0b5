"""A reward that only a server knows (scorers.remote.url; protocol: bench/scoring/remote.py), on prompts from files."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.api.task import Prompt, Scores
from bench.errors import MissingError
from tasks.prompt_files import SOURCE, PromptFileTask

if TYPE_CHECKING:
    from torch import Tensor


class Remote(PromptFileTask):
    """Whatever the server at scorers.remote.url scores: for packages that do not live with this one (ImageReward)."""

    name = "remote"
    version = "1"
    headline = "reward"
    sources: ClassVar[dict[str, str]] = SOURCE

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        raise MissingError("task 'remote' has no scorer of its own: set scorers.remote.url to a server's address")
