"""The composition task: GenEval's prompts and rules, with a detector for the backbone's world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.task import Prompt, Scores, Task
from bench.backbones.micro.worlds import DRAWN, DrawnWorld
from tasks.geneval.drawn import drawn_reader, drawn_splits, drawn_vocabulary
from tasks.geneval.photo import SOURCES, photo_reader
from tasks.geneval.prompt_records import check_record
from tasks.geneval.prompts import COCO, Vocabulary, generate
from tasks.geneval.rules import MAX_OBJECTS, Objects, official, partial, select, strict

if TYPE_CHECKING:
    from torch import Tensor

PICTURES_PER_PROMPT = 4
"""Images per official test prompt, as in the official evaluator."""
TRAINING_SEED, TRAINING_DRAWS = 1043, 3000
"""The official seed 43 gives the test prompts of photographs; this one gives their training prompts."""
HELD_OUT_PER_TAG = 16
"""Validation prompts per tag on photographs."""


def _photo_splits() -> dict[str, list[dict]]:
    """Test: the official 553 prompts with four images each. Training and validation: other prompts of the generator.

    There are only 80 single-object prompts, all of them in test, so training has none, as in the published mix.
    """
    test = generate(COCO)
    used = {record["prompt"] for record in test}
    by_tag: dict[str, list[dict]] = {}
    for record in generate(COCO, seed=TRAINING_SEED, draws=TRAINING_DRAWS):
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
    splits: Callable[[], dict[str, list[dict]]]
    reader: Callable[[dict[str, str]], Reader]
    reward: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """Partial scores and official verdicts [B] -> training rewards [B]."""
    lowest_reward: float
    version: str
    """Version of the scores in this world."""
    headline: str = "official"


def _half_official(partials: np.ndarray, officials: np.ndarray) -> np.ndarray:
    """Mean of the partial score and the official verdict.

    The partial score alone gives 0.75 for two objects on the wrong sides, too weak a signal for runs of minutes.
    """
    return 0.5 * partials.clip(0, 1) + 0.5 * officials


def _published(partials: np.ndarray, _: np.ndarray) -> np.ndarray:
    """Flow-GRPO's reward: the partial score itself, which is below 0 for far too many objects."""
    return partials


def _drawn(world: DrawnWorld) -> GenEvalWorld:
    def splits() -> dict[str, list[dict]]:
        return drawn_splits(world)

    def reader(_: dict[str, str]) -> Reader:
        return lambda images_BCHW, records: drawn_reader(world, images_BCHW, records)

    headline = world.headlines.get("geneval", GenEvalWorld.headline)
    return GenEvalWorld(drawn_vocabulary(world), splits, reader, _half_official, 0.0, "2", headline)


WORLDS = {name: _drawn(world) for name, world in DRAWN.items()} | {
    "photo": GenEvalWorld(COCO, _photo_splits, photo_reader, _published, 2.0 - MAX_OBJECTS, "3")
}
"""The lowest reward on photographs is that of 16 objects where one is asked for: 1 - 15 / 1 = 2 - 16."""


class GenEval(Task):
    """Reward: Flow-GRPO's partial score; in drawn worlds clipped to [0, 1] and averaged with the official verdict."""

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
        self.headline = self.entry.headline

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
        made = self.entry.splits()
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
