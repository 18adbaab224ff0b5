"""The text-rendering task: read the text in an image and compare it with the quoted text of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.task import Prompt, Scores, Task
from bench.backbones.micro.captions import SIGN_LENGTHS, Brief, caption
from bench.backbones.micro.glyphs import ALPHABET
from bench.backbones.micro.reader import read_text
from bench.backbones.micro.worlds import DRAWN, DrawnWorld
from bench.errors import UsageError
from tasks.ocr.engine import ENGINE, read_with_rapidocr
from tasks.ocr.formula import ocr_reward, plain, target_text
from tasks.prompt_files import SOURCE, as_prompts, read_prompts

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {"test": 192, "validation": 96, "train": 2000}
"""Prompts per split on micro."""
SEED = 7
"""Seed of micro's signs; see DrawnWorld.seed_of."""


def _drawn_signs(world: DrawnWorld) -> dict[str, list[str]]:
    """Captions of distinct random signs in a fixed order, with all lengths equally often."""
    rng = np.random.default_rng(world.seed_of(SEED))
    sizes = world.sizes(SIZES)
    signs: dict[str, None] = {}
    # A dict keeps the order and drops repeated signs.
    while len(signs) < sum(sizes.values()):
        length = SIGN_LENGTHS[len(signs) % len(SIGN_LENGTHS)]
        signs["".join(rng.choice(list(ALPHABET), length))] = None
    texts = iter([caption(Brief("sign", sign=sign)) for sign in signs])
    return {split: [next(texts) for _ in range(size)] for split, size in sizes.items()}


def _photo_prompts(sources: dict[str, str]) -> dict[str, list[str]]:
    return read_prompts("ocr", sources, target_text)


Reader = Callable[["Tensor"], list[str]]
# World -> (function that gives prompts by split, reader whose text is rewarded).
WORLDS: dict[str, tuple[Callable[[dict[str, str]], dict[str, list[str]]], Reader]] = {
    world.name: (lambda _, world=world: _drawn_signs(world), read_text) for world in DRAWN.values()
} | {"photo": (_photo_prompts, read_with_rapidocr)}
VERSIONS = dict.fromkeys(DRAWN, "1")
"""World -> version of its scores, if not the task's. Version 2 changed how accents and spaces are compared, which does
not affect the drawn worlds, whose signs have capitals and digits only."""


class Ocr(Task):
    """Reward: 1 - normalised edit distance. Headline: fraction of texts read exactly."""

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
        """Prompts of a split, all in the stratum "sign"."""
        return self._splits[split]

    @property
    def elsewhere(self) -> bool:
        """True for RapidOCR, which reads on the CPU."""
        return self.read is read_with_rapidocr

    @property
    def scorer_name(self) -> str:
        """Version of the formula, with the OCR engine or the world."""
        return f"ocr-{self.version}+{ENGINE if self.read is read_with_rapidocr else self.world}"

    def check(self, prompt: Prompt) -> None:
        """Raise UsageError for a prompt without unambiguous text in double quotes."""
        try:
            target_text(prompt.text)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """Rewards, which are also the metric "edit", and the metric "exact"."""
        edit, exact = _judge(self.read(images_BCHW), prompts)
        return Scores(edit, {"exact": exact, "edit": edit})

    def audit(self, images_BCHW: Tensor, prompts: list[Prompt]) -> dict[str, np.ndarray]:
        """RapidOCR's scores, if a different reader gives the reward."""
        if self.read is read_with_rapidocr:
            return {}
        edit, exact = _judge(read_with_rapidocr(images_BCHW), prompts)
        return {"rapidocr_exact": exact, "rapidocr_edit": edit}


def _judge(read: list[str], prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """Compare readings with the prompts' quoted texts: (1 - normalised edit distance, 1.0 if equal), each [B]."""
    targets = [target_text(p.text) for p in prompts]
    pairs = list(zip(read, targets, strict=True))
    edit = np.array([ocr_reward(text, target) for text, target in pairs])
    exact = np.array([plain(text) == plain(target) for text, target in pairs], float)
    return edit, exact
