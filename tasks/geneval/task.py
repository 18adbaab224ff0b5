"""The composition task: GenEval's prompts and rules with a detector for the backbone's world."""

from collections.abc import Callable
from functools import cache
from typing import ClassVar

import numpy as np
from torch import Tensor

from bench.backbones.micro.reader import find_shapes
from bench.backbones.micro.world import COLOURS, SHAPES
from bench.errors import MissingError
from bench.task import Prompt, Scores, Task
from tasks.geneval.prompts import COCO, Vocabulary, generate
from tasks.geneval.rules import Found, Objects, official, partial, select, strict

PICTURES_PER_TAG = {"validation": 24, "test": 48}


def _micro_detector(images_BCHW: Tensor) -> list[Objects]:
    pictures = []
    for marks in find_shapes(images_BCHW):
        objects: Objects = {}
        for mark in marks:
            objects.setdefault(mark.shape, []).append(Found(mark.box, mark.score, mark.colour))
        pictures.append(objects)
    return pictures


def _photo_detector(images_BCHW: Tensor) -> list[Objects]:
    raise MissingError("no COCO detector is configured for photographic backbones yet; GenEval scores need one")


Detector = Callable[[Tensor], list[Objects]]
# world -> vocabulary, draws of the generator, detector, share of the official verdict in the reward. The partial score
# alone, as published for photos, pays 0.75 for two objects on the wrong sides: too little to learn from in minutes.
WORLDS: dict[str, tuple[Vocabulary, int, Detector, float]] = {
    "micro": (Vocabulary(SHAPES, tuple(COLOURS)), 400, _micro_detector, 0.5),
    "photo": (COCO, 100, _photo_detector, 0.0),
}


class GenEval(Task):
    """Reward: Flow-GRPO's partial score in [0, 1], on micro averaged with the official verdict. Headline: official."""

    name = "geneval"
    version = "2"
    headline = "official"
    # The published training mix (Flow-GRPO): most of what SD3.5-M finds hard, none of what it can do.
    training_shares: ClassVar[dict[str, float]] = {
        "position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0,
    }  # fmt: skip

    def __init__(self, world: str):
        super().__init__(world)
        self.vocabulary, self.draws, self.detect, self.official_share = self.world_entry(WORLDS)

    @cache  # noqa: B019 - one task object lives as long as its process
    def prompts(self, split: str) -> list[Prompt]:
        """Each tag's generated records, a third to test, a sixth to validation, the rest to training.

        Test and validation cycle through their records up to a fixed number of pictures a tag.
        """
        by_tag: dict[str, list[dict]] = {}
        for record in generate(self.vocabulary, draws=self.draws):
            by_tag.setdefault(record["tag"], []).append(record)
        chosen = []
        for tag, records in by_tag.items():
            test, validation = len(records) // 3, max(1, len(records) // 6)
            parts = {
                "test": records[:test],
                "validation": records[test : test + validation],
                "train": records[test + validation :],
            }
            part = parts[split]
            rows = [part[i % len(part)] for i in range(PICTURES_PER_TAG.get(split, len(part)))]
            chosen += [Prompt(r["prompt"], tag, r) for r in rows]
        return chosen

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        rows = []
        for objects, prompt in zip(self.detect(images_BCHW), prompts, strict=True):
            kept = select(objects, prompt.metadata["tag"])
            verdict = official(kept, prompt.metadata, self.vocabulary.colours)[0]
            rows.append((partial(kept, prompt.metadata), verdict, strict(kept, prompt.metadata)))
        partials, officials, stricts = np.array(rows, np.float64).reshape(-1, 3).T
        rewards = (1 - self.official_share) * partials.clip(0, 1) + self.official_share * officials
        return Scores(rewards, {"official": officials, "strict": stricts, "partial": partials})
