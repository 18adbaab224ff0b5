"""The text-rendering task: read the picture, compare with the quoted text."""

from collections.abc import Callable
from functools import cache

import numpy as np
from torch import Tensor

from bench.backbones.micro.captions import SIGN_LENGTHS, Brief, caption
from bench.backbones.micro.glyphs import ALPHABET
from bench.backbones.micro.reader import read_text
from bench.errors import MissingError
from bench.task import Prompt, Scores, Task
from tasks.ocr.engine import read_with_rapidocr
from tasks.ocr.formula import ocr_reward, target_text

SIZES = {"test": 192, "validation": 96, "train": 2000}


def _micro_signs() -> list[str]:
    """Distinct random signs in a fixed order, lengths in equal shares."""
    rng = np.random.default_rng(7)
    signs: dict[str, None] = {}
    while len(signs) < sum(SIZES.values()):
        signs["".join(rng.choice(list(ALPHABET), SIGN_LENGTHS[len(signs) % len(SIGN_LENGTHS)]))] = None
    return [caption(Brief("sign", sign=sign)) for sign in signs]


def _photo_prompts() -> list[str]:
    raise MissingError("OCR prompts for photographic backbones come from a file that is not configured yet")


Reader = Callable[[Tensor], list[str]]
# world -> prompts, reader that gives the reward
WORLDS: dict[str, tuple[Callable[[], list[str]], Reader]] = {
    "micro": (_micro_signs, read_text),
    "photo": (_photo_prompts, read_with_rapidocr),
}


class Ocr(Task):
    """Reward: 1 - normalised edit distance. Headline: share of signs read exactly."""

    name = "ocr"
    version = "1"
    headline = "exact"

    def __init__(self, world: str):
        super().__init__(world)
        self.source, self.read = self.world_entry(WORLDS)

    @cache  # noqa: B019 - one task object lives as long as its process
    def prompts(self, split: str) -> list[Prompt]:
        start = sum(SIZES[s] for s in list(SIZES)[: list(SIZES).index(split)])
        return [Prompt(text, "sign") for text in self.source()[start : start + SIZES[split]]]

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        targets = [target_text(p.text) for p in prompts]
        read = self.read(images_BCHW)
        rewards = np.array([ocr_reward(r, t) for r, t in zip(read, targets, strict=True)])
        exact = np.array(
            [r.replace(" ", "").lower() == t.replace(" ", "").lower() for r, t in zip(read, targets)], float
        )
        return Scores(rewards, {"exact": exact, "edit": rewards})
