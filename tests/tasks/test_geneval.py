"""GenEval: official prompts, every branch of the rules, the micro detector."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch

from bench.api.task import Prompt
from bench.backbones.micro.captions import Brief, draw_scene
from bench.backbones.micro.world import draw
from tasks.geneval.prompts import COCO, TAGS, generate
from tasks.geneval.rules import DetectedObject, official, partial, relations, select, strict
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


def at(x: float, y: float, colour: str = "red", score: float = 0.95, size: float = 10) -> DetectedObject:
    return DetectedObject((x, y, x + size, y + size), score, colour)


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


def neighbours(threshold: float) -> tuple[float, float, float]:
    """float32's nearest value to a threshold, the one below and the one above."""
    at32 = np.float32(threshold)
    return float(at32), float(np.nextafter(at32, np.float32(0))), float(np.nextafter(at32, np.float32(1)))


@pytest.mark.parametrize(("tag", "threshold"), [("single_object", 0.3), ("counting", 0.9)])
def test_confidences_are_compared_as_float32(tag: str, threshold: float) -> None:
    """float32's 0.3 is 0.30000001192..., more than Python's 0.3, and yet not above the threshold."""
    equal, below, above = neighbours(threshold)
    assert below < threshold < above
    assert (equal > threshold) == (threshold == 0.3)  # what float64 would decide
    assert select({"cat": [at(0, 0, score=equal)]}, tag) == {}
    assert select({"cat": [at(0, 0, score=below)]}, tag) == {}
    assert select({"cat": [at(0, 0, score=above)]}, tag) == {"cat": [at(0, 0, score=above)]}


def test_of_equal_confidences_the_first_comes_first() -> None:
    """Confidences that float32 cannot tell apart are equal. (The photo reader hands them on in the official order.)"""
    twins = [at(0, 0, "blue", 0.5), at(50, 0, "red", 0.5), at(90, 0, "green", 0.5 + 1e-9), at(0, 90, "blue", 0.4)]
    kept = select({"cat": twins}, "colors")["cat"]
    assert kept == twins
    assert select({"cat": kept}, "colors")["cat"] == kept
    assert not official(select({"cat": twins[:2]}, "colors"), RED, COLOURS)[0]
    assert official(select({"cat": twins[1::-1]}, "colors"), RED, COLOURS)[0]


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


def test_relations_divide_by_the_whole_offset() -> None:
    """A pair side by side stands in a relation from a fifth of the summed widths on, strictly."""
    wide = lambda x: DetectedObject((x, 0.0, x + 100.0, 100.0), 0.9, "")
    assert relations(wide(0), wide(40)) == set()
    assert relations(wide(0), wide(41)) == {"left of"}
    assert relations(wide(41), wide(0)) == {"right of"}


@pytest.fixture(scope="module")
def task() -> GenEval:
    return GenEval("micro")


def test_of_equally_confident_marks_the_first_read_counts(monkeypatch) -> None:
    """Stored runs on micro were scored so."""
    from types import SimpleNamespace

    from tasks.geneval import drawn as module

    marks = [SimpleNamespace(shape="circle", box=(0, 0, 9, 9), score=0.9995, colour=c) for c in ("red", "blue")]
    monkeypatch.setattr(module, "find_shapes", lambda images, shapes: [marks])
    record = {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": "a red circle"}
    micro = GenEval("micro")
    assert (micro.scorer_name, micro.lowest_reward) == ("geneval-2+micro", 0)
    scores = micro.score(torch.zeros(1, 3, 32, 32), [Prompt("a red circle", "colors", record)])
    assert scores.metrics["official"].tolist() == [1]


def test_far_too_many_objects_cost_as_published_on_photographs_alone(monkeypatch) -> None:
    """8 found for 2: the published partial score is -2; on micro it counts as 0."""
    record = TWO | {"prompt": "a photo of two cats"}
    crowd = {"cat": [at(20 * i, 0) for i in range(8)]}
    monkeypatch.setattr(GenEval, "reader", property(lambda self: lambda images, records: [crowd]))
    photo = GenEval("photo")
    scores = photo.score(torch.zeros(1, 3, 8, 8), [Prompt(record["prompt"], "counting", record)])
    assert scores.rewards.tolist() == scores.metrics["partial"].tolist() == [-2]
    assert photo.entry.reward(np.array([-2.0, 0.5]), np.array([0.0, 1.0])).tolist() == [-2, 0.5]
    assert GenEval("micro").entry.reward(np.array([-2.0, 0.5]), np.array([0.0, 1.0])).tolist() == [0, 0.75]


def test_the_lowest_reward_is_that_of_sixteen_objects_for_one() -> None:
    crowd = {"cat": [at(20 * i, 0) for i in range(40)]}
    assert partial(select(crowd, "single_object"), ONE) == GenEval("photo").lowest_reward == -14


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
