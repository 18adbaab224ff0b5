"""GenEval in the drawn worlds: their vocabulary, prompts by split, and the detector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.backbones.micro.reader import find_shapes
from bench.backbones.micro.world import COLOURS
from bench.backbones.micro.worlds import DrawnWorld
from tasks.geneval.prompts import Vocabulary, generate
from tasks.geneval.rules import DetectedObject, Objects

if TYPE_CHECKING:
    from torch import Tensor

PICTURES_PER_TAG = {"validation": 24, "test": 48}
"""Images per tag in the held-out splits of micro."""
SEED, DRAWS = 43, 400
"""Seed and draws per tag of micro's prompts; see DrawnWorld.seed_of."""
OPPOSITE = {"left of": "right of", "above": "below"}
"""Relation -> the one that means the same with the objects exchanged."""


def drawn_vocabulary(world: DrawnWorld) -> Vocabulary:
    """The names and colours of a world's objects."""
    return Vocabulary(world.shapes, tuple(COLOURS))


def drawn_reader(world: DrawnWorld, images_BCHW: Tensor, _: list[dict]) -> list[Objects]:
    """The objects in images, with their confidences and colours; all colours are read at once."""
    pictures = []
    for marks in find_shapes(images_BCHW, shapes=world.shapes):
        objects: Objects = {}
        for mark in marks:
            found = DetectedObject(mark.box, mark.score, mark.colour)
            objects.setdefault(mark.shape, []).append(found)
        pictures.append(objects)
    return pictures


def meaning(record: dict) -> tuple:
    """What a record asks for, equal for records that the same images satisfy.

    The order in which objects are named does not matter, and "a left of b" means "b right of a".
    """
    include = record["include"]
    if record["tag"] != "position":
        return record["tag"], *sorted((part["class"], part["count"], part.get("color", "")) for part in include)
    other, target = include[0]["class"], include[1]["class"]
    relation = include[1]["position"][0]
    if relation in OPPOSITE:
        other, target, relation = target, other, OPPOSITE[relation]
    return record["tag"], target, relation, other


def drawn_splits(world: DrawnWorld) -> dict[str, list[dict]]:
    """Generated records by split: of each tag a third is for test, a sixth for validation and the rest for training.

    What is divided are texts on `micro`, and meanings elsewhere, of which the held-out splits have one wording each.
    Test and validation cycle through their records up to a fixed number of images per tag.
    """
    by_tag: dict[str, dict[tuple, list[dict]]] = {}
    for record in generate(drawn_vocabulary(world), world.seed_of(SEED), DRAWS):
        same = meaning(record) if world.by_meaning else (record["prompt"],)
        by_tag.setdefault(record["tag"], {}).setdefault(same, []).append(record)
    sizes = world.sizes(PICTURES_PER_TAG)
    splits: dict[str, list[dict]] = {}
    for meanings in by_tag.values():
        groups = list(meanings.values())
        test, validation = len(groups) // 3, max(1, len(groups) // 6)
        parts = {
            "test": groups[:test],
            "validation": groups[test : test + validation],
            "train": groups[test + validation :],
        }
        for split, part in parts.items():
            is_held_out = split in PICTURES_PER_TAG
            # Further wordings of a held-out meaning are in no split: images of one prompt are then of one meaning.
            records = [record for group in part for record in (group[:1] if is_held_out else group)]
            count = sizes[split] if is_held_out else len(records)
            splits.setdefault(split, []).extend(np.resize(np.array(records, object), count).tolist())
    return splits
