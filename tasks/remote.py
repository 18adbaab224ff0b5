"""A reward that only a server knows (scorers.remote.url; protocol: bench/remote.py), on prompts from files."""

from functools import cached_property
from typing import ClassVar

from torch import Tensor

from bench.errors import MissingError
from bench.task import Prompt, Scores, Task
from tasks.prompt_files import read_prompts


class Remote(Task):
    """Whatever the server at scorers.remote.url scores: for packages that do not live with this one (ImageReward)."""

    name = "remote"
    version = "1"
    headline = "reward"
    in_all = False
    sources: ClassVar[dict[str, str]] = {"prompts": "folder with train.txt and test.txt, one prompt a line"}

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        return {split: [Prompt(text) for text in texts] for split, texts in read_prompts(self.name, self.given).items()}

    def prompts(self, split: str) -> list[Prompt]:
        return self._splits[split]

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        raise MissingError("task 'remote' has no scorer of its own: set scorers.remote.url to a server's address")
