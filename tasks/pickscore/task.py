"""The preference task: a CLIP scorer trained on pairs, as PickScore is."""

from functools import cache

import numpy as np
from torch import Tensor

from bench.backbones.micro.captions import caption
from bench.errors import MissingError
from bench.task import Prompt, Scores, Task
from tasks.pickscore import micro
from tasks.pickscore.gold import gold
from tasks.pickscore.scorer import ClipScorer

SIZES = {"test": 192, "validation": 96, "train": 2000}


def _micro_prompts() -> dict[str, list[Prompt]]:
    return {
        split: [Prompt(caption(b), "illustration", {"wanted": micro.pairs(b)}) for b in briefs]
        for split, briefs in micro.briefs(SIZES).items()
    }


def _photo(*_):
    raise MissingError("preference prompts and PickScore weights for photographic backbones are not configured yet")


# world -> prompts by split, scorer, known utility (None where there is none)
WORLDS = {
    "micro": (_micro_prompts, lambda: ClipScorer(micro.FOLDER, micro.tokenise), gold),
    "photo": (_photo, _photo, None),
}


class PickScore(Task):
    """Reward: the learned score mapped to [0, 1]. Where the true utility is known it is reported as 'gold'."""

    name = "pickscore"
    version = "1"
    headline = "reward"

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self._prompts, scorer, self.utility = self.world_entry(WORLDS)
        self.scorer: ClipScorer = scorer()

    @cache  # noqa: B019 - one task object lives as long as its process
    def _splits(self) -> dict[str, list[Prompt]]:
        return self._prompts()

    def prompts(self, split: str) -> list[Prompt]:
        return self._splits()[split]

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        raw = self.scorer.raw(images_BCHW, [p.text for p in prompts])
        metrics: dict[str, np.ndarray] = {"pickscore": raw}
        if self.utility:
            metrics["gold"] = self.utility(images_BCHW, [p.metadata["wanted"] for p in prompts])
        return Scores(self.scorer.reward(raw), metrics)
