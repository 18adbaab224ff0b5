"""The text-rendering task: read the picture, compare with the quoted text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.task import Prompt, Scores, Task
from bench.backbones.micro.captions import SIGN_LENGTHS, Brief, caption
from bench.backbones.micro.glyphs import ALPHABET
from bench.backbones.micro.reader import read_text
from bench.errors import UsageError
from tasks.ocr.engine import ENGINE, read_with_rapidocr
from tasks.ocr.formula import ocr_reward, plain, target_text
from tasks.prompt_files import SOURCE, as_prompts, read_prompts

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {"test": 192, "validation": 96, "train": 2000}


def _micro_signs(_: dict[str, str]) -> dict[str, list[str]]:
    """Distinct random signs in a fixed order, lengths in equal shares."""
    rng = np.random.default_rng(7)
    signs: dict[str, None] = {}
    while len(signs) < sum(SIZES.values()):
        signs["".join(rng.choice(list(ALPHABET), SIGN_LENGTHS[len(signs) % len(SIGN_LENGTHS)]))] = None
    texts = iter([caption(Brief("sign", sign=sign)) for sign in signs])
    return {split: [next(texts) for _ in range(size)] for split, size in SIZES.items()}


def _photo_prompts(sources: dict[str, str]) -> dict[str, list[str]]:
    return read_prompts("ocr", sources, target_text)


Reader = Callable[["Tensor"], list[str]]
# world -> prompts by split, reader that gives the reward
WORLDS: dict[str, tuple[Callable[[dict[str, str]], dict[str, list[str]]], Reader]] = {
    "micro": (_micro_signs, read_text),
    "photo": (_photo_prompts, read_with_rapidocr),
}
VERSIONS = {"micro": "1"}
"""Of the scores, where it is not the task's: micro's signs are capitals and digits, and what the formula has come to
make of accents and blanks leaves their scores as they are."""


class Ocr(Task):
    """Reward: 1 - normalised edit distance. Headline: share of signs read exactly."""

    name = "ocr"
    version = "2"
    headline = "exact"
    in_all = True
    sources: ClassVar[dict[str, str]] = SOURCE
    sources_in = ("photo",)

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self._prompts, self.read = self.world_entry(WORLDS)
        self.version = VERSIONS.get(world, self.version)

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        return as_prompts(self._prompts(self.given), "sign")

    def prompts(self, split: str) -> list[Prompt]:
        return self._splits[split]

    @property
    def scorer_name(self) -> str:
        return f"ocr-{self.version}+{ENGINE if self.read is read_with_rapidocr else self.world}"

    def check(self, prompt: Prompt) -> None:
        try:
            target_text(prompt.text)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        edit, exact = _judge(self.read(images_BCHW), prompts)
        return Scores(edit, {"exact": exact, "edit": edit})

    def audit(self, images_BCHW: Tensor, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        """RapidOCR's verdict, where another reader gives the reward."""
        if self.read is read_with_rapidocr:
            return {}
        edit, exact = _judge(read_with_rapidocr(images_BCHW), prompts)
        return {"rapidocr_exact": exact, "rapidocr_edit": edit}


def _judge(read: list[str], prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """Readings against the prompts' quoted text: (1 - normalised edit distance, 1.0 where equal), each [B]."""
    pairs = [(r, target_text(p.text)) for r, p in zip(read, prompts, strict=True)]
    return np.array([ocr_reward(*pair) for pair in pairs]), np.array([plain(r) == plain(t) for r, t in pairs], float)
