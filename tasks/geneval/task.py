"""The composition task: GenEval's prompts and rules with a detector for the backbone's world."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from torch import Tensor

from bench.backbones.micro.reader import find_shapes
from bench.backbones.micro.world import COLOURS, SHAPES
from bench.errors import UsageError
from bench.task import Prompt, Scores, Task
from tasks.geneval.photo import SOURCES, photo_reader
from tasks.geneval.prompts import COCO, Vocabulary, generate
from tasks.geneval.rules import Found, Objects, official, partial, select, strict

PICTURES_PER_TAG = {"validation": 24, "test": 48}
PICTURES_PER_PROMPT = 4
TRAINING_SEED, TRAINING_DRAWS = 1043, 3000
HELD_OUT_PER_TAG = 16


def _micro_reader(images_BCHW: Tensor, _: list[dict]) -> list[Objects]:
    pictures = []
    for marks in find_shapes(images_BCHW):
        objects: Objects = {}
        for mark in marks:
            objects.setdefault(mark.shape, []).append(Found(mark.box, mark.score, mark.colour))
        pictures.append(objects)
    return pictures


def _micro_splits(vocabulary: Vocabulary) -> dict[str, list[dict]]:
    """Each tag's generated records, a third to test, a sixth to validation, the rest to training.

    Test and validation cycle through their records up to a fixed number of pictures a tag.
    """
    by_tag: dict[str, list[dict]] = {}
    for record in generate(vocabulary, draws=400):
        by_tag.setdefault(record["tag"], []).append(record)
    splits: dict[str, list[dict]] = {}
    for records in by_tag.values():
        test, validation = len(records) // 3, max(1, len(records) // 6)
        parts = {
            "test": records[:test],
            "validation": records[test : test + validation],
            "train": records[test + validation :],
        }
        for split, part in parts.items():
            count = PICTURES_PER_TAG.get(split, len(part))
            splits.setdefault(split, []).extend(part[i % len(part)] for i in range(count))
    return splits


def _photo_splits(vocabulary: Vocabulary) -> dict[str, list[dict]]:
    """Test: the official 553 prompts, four pictures each. The others: more of the same generator, none of them in test.

    Single objects are 80 prompts in all, and all in test: training has none, as in the published mix.
    """
    test = generate(vocabulary)
    told, by_tag = {record["prompt"] for record in test}, {}
    for record in generate(vocabulary, seed=TRAINING_SEED, draws=TRAINING_DRAWS):
        if record["prompt"] not in told:
            told.add(record["prompt"])
            by_tag.setdefault(record["tag"], []).append(record)
    return {
        "test": [record for record in test for _ in range(PICTURES_PER_PROMPT)],
        "validation": [record for records in by_tag.values() for record in records[:HELD_OUT_PER_TAG]],
        "train": [record for records in by_tag.values() for record in records[HELD_OUT_PER_TAG:]],
    }


Reader = Callable[[Tensor, list[dict]], list[Objects]]
"""Pictures and their prompt records -> objects, coloured where the record asks for a colour."""


@dataclass(frozen=True)
class World:
    """GenEval in one backbone's world."""

    vocabulary: Vocabulary
    splits: Callable[[Vocabulary], dict[str, list[dict]]]
    reader: Callable[[dict[str, str]], Reader]
    official_share: float
    """Share of the official verdict in the reward. The partial score alone, as published for photos, pays 0.75 for two
    objects on the wrong sides: too little to learn from in minutes."""


WORLDS = {
    "micro": World(Vocabulary(SHAPES, tuple(COLOURS)), _micro_splits, lambda _: _micro_reader, 0.5),
    "photo": World(COCO, _photo_splits, photo_reader, 0.0),
}


class GenEval(Task):
    """Reward: Flow-GRPO's partial score in [0, 1], on micro averaged with the official verdict. Headline: official."""

    name = "geneval"
    version = "2"
    headline = "official"
    in_all = True
    # The published training mix (Flow-GRPO): most of what SD3.5-M finds hard, none of what it can do.
    training_shares: ClassVar[dict[str, float]] = {
        "position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0,
    }  # fmt: skip

    sources = SOURCES
    sources_in = ("photo",)

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.entry: World = self.world_entry(WORLDS)

    @cached_property
    def reader(self) -> Reader:
        return self.entry.reader(self.given)

    @cached_property
    def scorer_name(self) -> str:
        return f"geneval-{self.version}+{getattr(self.reader, 'name', self.world)}"

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        made = self.entry.splits(self.entry.vocabulary)
        return {split: [Prompt(r["prompt"], r["tag"], r) for r in records] for split, records in made.items()}

    def prompts(self, split: str) -> list[Prompt]:
        return self._splits[split]

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        rows, details = [], []
        if odd := next((p for p in prompts if not p.metadata.get("include")), None):
            raise UsageError(f"{odd.text!r} is no prompt of GenEval: its record has no 'include' list")
        read = self.reader(images_BCHW, [p.metadata for p in prompts])
        for objects, prompt in zip(read, prompts, strict=True):
            kept = select(objects, prompt.metadata["tag"])
            verdict, reason = official(kept, prompt.metadata, self.entry.vocabulary.colours)
            rows.append((partial(kept, prompt.metadata), verdict, strict(kept, prompt.metadata)))
            boxes = {name: [[*o.box, o.score] for o in found] for name, found in kept.items()}
            details.append({"correct": verdict, "reason": reason, "details": boxes})
        partials, officials, stricts = np.array(rows, np.float64).reshape(-1, 3).T
        share = self.entry.official_share
        rewards = (1 - share) * partials.clip(0, 1) + share * officials
        return Scores(rewards, {"official": officials, "strict": stricts, "partial": partials}, details)
