"""The composition task: GenEval's prompts and rules, with a detector for the backbone's world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.task import Prompt, Scores, Task
from bench.backbones.micro.reader import find_shapes
from bench.backbones.micro.world import COLOURS, SHAPES
from tasks.geneval.photo import SOURCES, photo_reader
from tasks.geneval.prompt_records import check_record
from tasks.geneval.prompts import COCO, Vocabulary, generate
from tasks.geneval.rules import MAX_OBJECTS, DetectedObject, Objects, official, partial, select, strict

if TYPE_CHECKING:
    from torch import Tensor

PICTURES_PER_TAG = {"validation": 24, "test": 48}
"""Images per tag in the held-out splits of micro."""
PICTURES_PER_PROMPT = 4
"""Images per official test prompt, as in the official evaluator."""
TRAINING_SEED, TRAINING_DRAWS = 1043, 3000
"""The official seed 43 gives the test prompts of photographs; this one gives their training prompts."""
HELD_OUT_PER_TAG = 16
"""Validation prompts per tag on photographs."""


def _micro_reader(images_BCHW: Tensor, _: list[dict]) -> list[Objects]:
    pictures = []
    for marks in find_shapes(images_BCHW):
        objects: Objects = {}
        for mark in marks:
            found = DetectedObject(mark.box, mark.score, mark.colour)
            objects.setdefault(mark.shape, []).append(found)
        pictures.append(objects)
    return pictures


def _micro_splits(vocabulary: Vocabulary) -> dict[str, list[dict]]:
    """Generated records by split: of each tag a third is for test, a sixth for validation and the rest for training.

    Test and validation cycle through their records up to a fixed number of images per tag.
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
            cycled = [part[i % len(part)] for i in range(count)]
            splits.setdefault(split, []).extend(cycled)
    return splits


def _photo_splits(vocabulary: Vocabulary) -> dict[str, list[dict]]:
    """Test: the official 553 prompts with four images each. Training and validation: other prompts of the generator.

    There are only 80 single-object prompts, all of them in test, so training has none, as in the published mix.
    """
    test = generate(vocabulary)
    used = {record["prompt"] for record in test}
    by_tag: dict[str, list[dict]] = {}
    for record in generate(vocabulary, seed=TRAINING_SEED, draws=TRAINING_DRAWS):
        if record["prompt"] not in used:
            used.add(record["prompt"])
            by_tag.setdefault(record["tag"], []).append(record)
    return {
        "test": [record for record in test for _ in range(PICTURES_PER_PROMPT)],
        "validation": [record for records in by_tag.values() for record in records[:HELD_OUT_PER_TAG]],
        "train": [record for records in by_tag.values() for record in records[HELD_OUT_PER_TAG:]],
    }


Reader = Callable[["Tensor", list[dict]], list[Objects]]
"""Images and their prompt records -> objects, with colours for the classes whose colour the record gives."""


@dataclass(frozen=True)
class GenEvalWorld:
    """The parts of GenEval that depend on the backbone's world."""

    vocabulary: Vocabulary
    splits: Callable[[Vocabulary], dict[str, list[dict]]]
    reader: Callable[[dict[str, str]], Reader]
    reward: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """Partial scores and official verdicts [B] -> training rewards [B]."""
    lowest_reward: float
    version: str
    """Version of the scores in this world."""


def _half_official(partials: np.ndarray, officials: np.ndarray) -> np.ndarray:
    """Mean of the partial score and the official verdict.

    The partial score alone gives 0.75 for two objects on the wrong sides, too weak a signal for runs of minutes.
    """
    return 0.5 * partials.clip(0, 1) + 0.5 * officials


def _published(partials: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Flow-GRPO's reward: the partial score itself, which is below 0 for far too many objects."""
    return partials


WORLDS = {
    "micro": GenEvalWorld(
        Vocabulary(SHAPES, tuple(COLOURS)), _micro_splits, lambda _: _micro_reader, _half_official, 0.0, "2"
    ),
    "photo": GenEvalWorld(COCO, _photo_splits, photo_reader, _published, 2.0 - MAX_OBJECTS, "3"),
}
"""The lowest reward on photographs is that of 16 objects where one is asked for: 1 - 15 / 1 = 2 - 16."""


class GenEval(Task):
    """Reward: Flow-GRPO's partial score; on micro clipped to [0, 1] and averaged with the official verdict."""

    name = "geneval"
    version = "3"
    headline = "official"
    in_all = True
    # The published training mix (Flow-GRPO): mostly what SD3.5-M finds hard, nothing that it already can.
    training_shares: ClassVar[dict[str, float]] = {
        "position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1, "single_object": 0,
    }  # fmt: skip

    sources = SOURCES
    sources_in = ("photo",)

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.entry: GenEvalWorld = self.world_entry(WORLDS)
        self.version, self.lowest_reward = self.entry.version, self.entry.lowest_reward

    @cached_property
    def reader(self) -> Reader:
        """The detector's interface, built at first use. Raises MissingError if the world needs a detector to be set."""
        return self.entry.reader(self.given)

    @cached_property
    def scorer_name(self) -> str:
        """Version of the rules, with the detector's name or that of the world."""
        return f"geneval-{self.version}+{getattr(self.reader, 'name', self.world)}"

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        made = self.entry.splits(self.entry.vocabulary)
        return {split: [_prompt(record) for record in records] for split, records in made.items()}

    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of a split; the stratum is the tag, the metadata the prompt record."""
        return self._splits[split]

    def check(self, prompt: Prompt) -> None:
        """Raise UsageError for a record that the rules cannot judge (see check_record)."""
        record = prompt.metadata
        # Metadata from outside may be anything; check_record refuses what is not an object.
        if isinstance(record, dict):
            record = record | {"prompt": prompt.text}
        check_record(record, self.entry.vocabulary)

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The world's reward, with the official, strict and partial scores as metrics and objects as details."""
        rows, details = [], []
        for prompt in prompts:
            self.check(prompt)
        read = self.reader(images_BCHW, [p.metadata for p in prompts])
        for objects, prompt in zip(read, prompts, strict=True):
            kept = select(objects, prompt.metadata["tag"])
            verdict, reason = official(kept, prompt.metadata, self.entry.vocabulary.colours)
            scores = (partial(kept, prompt.metadata), verdict, strict(kept, prompt.metadata))
            rows.append(scores)
            boxes = {name: [[*o.box, o.score] for o in found] for name, found in kept.items()}
            details.append({"correct": verdict, "reason": reason, "details": boxes})
        partials, officials, stricts = np.array(rows, np.float64).reshape(-1, 3).T
        rewards = self.entry.reward(partials, officials)
        return Scores(rewards, {"official": officials, "strict": stricts, "partial": partials}, details)


def _prompt(record: dict) -> Prompt:
    return Prompt(record["prompt"], record["tag"], record)
