"""GenEval: official prompts, every branch of the rules, the micro detector."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch

from bench.backbones.micro.captions import Brief, draw_scene
from bench.backbones.micro.world import draw
from tasks.geneval.prompts import COCO, TAGS, generate
from tasks.geneval.rules import Found, official, partial, relations, select, strict
from tasks.geneval.task import GenEval

COLOURS = COCO.colours


def test_coco_vocabulary_gives_the_official_553_prompts() -> None:
    records = generate(COCO)
    assert Counter(r["tag"] for r in records) == {
        "position": 100, "color_attr": 100, "two_object": 99, "colors": 94, "single_object": 80, "counting": 80,
    }  # fmt: skip
    canonical = json.dumps(records, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest().startswith("010f2e9a62a68a9069150764f9736bb5")
    prompts = "\n".join(r["prompt"] for r in records)
    assert hashlib.sha256(prompts.encode()).hexdigest().startswith("4de60dfc3c29f9d3db69ec45cf03a964")
    lines = "".join(json.dumps(r) + "\n" for r in records)
    official_file = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
    assert hashlib.sha256(lines.encode()).hexdigest() == official_file


def at(x: float, y: float, colour: str = "red", score: float = 0.95, size: float = 10) -> Found:
    return Found((x, y, x + size, y + size), score, colour)


ONE = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
TWO = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}
RED = {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]}
LEFT = {
    "tag": "position",
    "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
}
# objects, record, official, strict, partial, part of the official reason
CASES = [
    ({"cat": [at(0, 0)]}, ONE, True, True, 1.0, ""),
    ({}, ONE, False, False, 0.0, "expected cat>=1, found 0"),
    ({"cat": [at(0, 0), at(50, 50, score=0.5)]}, ONE, True, False, 0.0, ""),
    ({"cat": [at(0, 0), at(50, 50)]}, TWO, True, True, 1.0, ""),
    ({"cat": [at(0, 0)]}, TWO, False, False, 0.5, "expected cat>=2, found 1"),
    ({"cat": [at(0, 0), at(50, 0), at(0, 50)]}, TWO, False, False, 0.5, "expected cat<3, found 3"),
    ({"cat": [at(20 * i, 0) for i in range(8)]}, TWO, False, False, -2.0, "expected cat<3, found 8"),
    ({"cat": [at(0, 0)]}, RED, True, True, 1.0, ""),
    ({"cat": [at(0, 0, "blue")]}, RED, False, False, 0.5, "expected red cat>=1, found 0 red; and 1 blue"),
    ({}, RED, False, False, 0.0, "expected cat>=1"),
    ({"cat": [at(0, 0, "blue", 0.99), at(50, 0, "red", 0.5)]}, RED, False, False, 0.0, "found 0 red; and 1 blue"),
    ({"dog": [at(50, 0)], "cat": [at(0, 0)]}, LEFT, True, True, 1.0, ""),
    ({"dog": [at(0, 0)], "cat": [at(50, 0)]}, LEFT, False, False, 0.75, "expected cat left of target, found right of"),
    ({"dog": [at(0, 0)], "cat": [at(1, 0)]}, LEFT, False, False, 0.75, "found  target"),
    ({"cat": [at(0, 0)]}, LEFT, False, False, 1 / 3, "no target for cat to be left of"),
    ({"dog": [at(0, 0)]}, LEFT, False, False, 1 / 3, "expected cat>=1, found 0"),
]


@pytest.mark.parametrize(("objects", "record", "is_official", "is_strict", "credit", "reason"), CASES)
def test_decisions(objects, record, is_official, is_strict, credit, reason) -> None:
    kept = select(objects, record["tag"])
    verdict, why = official(kept, record, COLOURS)
    assert verdict is is_official
    assert reason in why
    assert strict(kept, record) is is_strict
    assert partial(kept, record) == pytest.approx(credit)


def test_selection_by_confidence_threshold_and_cap() -> None:
    crowd = {"cat": [at(i, 0, score=0.31 + i / 100) for i in range(20)] + [at(0, 0, score=0.3)]}
    kept = select(crowd, "single_object")["cat"]
    assert len(kept) == 16
    assert [o.score for o in kept] == sorted((o.score for o in kept), reverse=True)
    assert select({"cat": [at(0, 0, score=0.3)]}, "single_object") == {}
    assert select({"cat": [at(0, 0, score=0.85)]}, "counting") == {}


def test_relations_by_offset() -> None:
    assert relations(at(0, 0), at(50, 0)) == {"left of"}
    assert relations(at(0, 0), at(50, 50)) == {"left of", "above"}
    assert relations(at(50, 50), at(50, 0)) == {"below"}
    assert relations(at(0, 0), at(2, 0)) == set()  # within a tenth of the summed widths
    assert relations(at(0, 0), at(0, 0)) == set()
    rng = np.random.default_rng(0)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for x, y, size in rng.uniform(0, 60, (200, 3)):
        a, b = at(x, y, size=size + 1), at(30, 30)
        assert relations(b, a) == {opposite[r] for r in relations(a, b)}


@pytest.fixture(scope="module")
def task() -> GenEval:
    return GenEval("micro")


def test_splits_share_no_prompt_and_cover_every_tag(task: GenEval) -> None:
    texts = {split: {p.text for p in task.prompts(split)} for split in ("train", "validation", "test")}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]
    for split in texts:
        assert {p.stratum for p in task.prompts(split)} == set(TAGS)
    assert len(task.prompts("test")) >= 144


def brief_of(record: dict) -> Brief:
    include = record["include"]
    if record["tag"] == "counting":
        count = include[0]["count"]
        return Brief("counting", (include[0]["class"],) * count, ("",) * count)
    shapes = tuple(clause["class"] for clause in include)
    colours = tuple(clause.get("color", "") for clause in include)
    relation = include[1]["position"][0] if record["tag"] == "position" else ""
    return Brief(record["tag"], shapes, colours, relation)


@pytest.mark.parametrize(("noise", "floor"), [(0.0, 1.0), (0.05, 0.99), (0.15, 0.9)])
def test_detector_reads_rendered_pictures_through_noise(task: GenEval, noise: float, floor: float) -> None:
    rng = np.random.default_rng(0)
    prompts = task.prompts("test")
    clean = np.stack([draw(draw_scene(brief_of(p.metadata), rng, distant=0)) for p in prompts])
    images = torch.from_numpy((clean + noise * rng.normal(size=clean.shape)).clip(0, 1).astype(np.float32))
    scores = task.score(images.permute(0, 3, 1, 2), prompts)
    assert scores.metrics["official"].mean() >= floor


def test_detector_finds_nothing_in_nothing(task: GenEval) -> None:
    prompts = task.prompts("test")[:4]
    blank = torch.stack(
        [torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.rand(3, 32, 32), torch.full((3, 32, 32), 0.5)]
    )
    scores = task.score(blank, prompts)
    assert not scores.metrics["official"].any()
    assert (scores.rewards == 0).all()
