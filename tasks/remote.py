"""A reward computed by a server (scorers.remote.url; protocol in bench/scoring/remote.py), on prompts from files."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.api.task import Prompt, Scores
from bench.errors import MissingError
from tasks.prompt_files import SOURCE, PromptFileTask

if TYPE_CHECKING:
    from torch import Tensor


class Remote(PromptFileTask):
    """Scores from the server at scorers.remote.url, for packages that need their own environment (UnifiedReward)."""

    name = "remote"
    version = "1"
    headline = "reward"
    sources: ClassVar[dict[str, str]] = SOURCE

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """Raise MissingError: a scorer's address must be set."""
        raise MissingError("task 'remote' is scored by a server: set scorers.remote.url to its address")
