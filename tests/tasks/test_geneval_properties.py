"""GenEval's decision rules on thousands of random scenes: what must hold whatever is found, and every branch."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tasks.geneval.rules import DetectedObject, Objects, official, partial, relations, select, strict

COLOURS = ("red", "green", "blue")
NAMES = ("cat", "dog", "cup")
SIDES = ("left of", "right of", "above", "below")


def scene(rng: np.random.Generator) -> Objects:
    """Up to three objects of each of up to three classes."""
    objects: Objects = {}
    for name in NAMES:
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = rng.uniform((0, 0, 20, 20), (300, 300, 200, 200))
            colour = str(rng.choice(COLOURS))
            objects.setdefault(name, []).append(DetectedObject((x, y, x + w, y + h), float(rng.uniform(0.3, 1)), colour))
    return {name: sorted(found, key=lambda o: -o.score) for name, found in objects.items()}


def record(rng: np.random.Generator) -> dict:
    """A prompt record of any of the six tags, in the official form."""
    a, b = rng.permutation(NAMES)[:2].tolist()
    count, colours, side = int(rng.integers(1, 4)), rng.permutation(COLOURS).tolist(), str(rng.choice(SIDES))
    one = lambda name, **more: {"class": name, "count": 1, **more}
    return [
        {"tag": "single_object", "include": [one(a)]},
        {"tag": "two_object", "include": [one(a), one(b)]},
        {
            "tag": "counting",
            "include": [{"class": a, "count": count}],
            "exclude": [{"class": a, "count": count + 1}],
        },
        {"tag": "colors", "include": [one(a, color=colours[0])]},
        {"tag": "position", "include": [one(b), one(a, position=[side, 0])]},
        {"tag": "color_attr", "include": [one(a, color=colours[0]), one(b, color=colours[1])]},
    ][rng.integers(6)]


CASES = [(scene(rng), record(rng)) for rng in map(np.random.default_rng, range(4000))]


def moved(objects: Objects, by: np.ndarray, scale: float) -> Objects:
    place = lambda box: tuple(float(v) for v in np.array(box) * scale + np.tile(by, 2))
    return {name: [replace(o, box=place(o.box)) for o in found] for name, found in objects.items()}


def mirrored(objects: Objects) -> Objects:
    turn = lambda box: (1000 - box[2], box[1], 1000 - box[0], box[3])
    return {name: [replace(o, box=turn(o.box)) for o in found] for name, found in objects.items()}


def test_every_branch_is_reached() -> None:
    """The reasons' kinds in these scenes are all that the evaluator knows."""
    kinds = {
        "count too low": r"expected \w+>=\d+, found \d+$",
        "excluded": r"expected \w+<\d+, found \d+$",
        "wrong colour": r"expected \w+ \w+>=\d+, found \d+ \w+; and ",
        "wrong position": r"expected \w+ (left of|right of|above|below) target, found",
        "missing target": r"no target for \w+ to be",
    }
    lines = [line for objects, asked in CASES for line in official(objects, asked, COLOURS)[1].splitlines()]
    seen = {kind: sum(bool(re.match(pattern, line)) for line in lines) for kind, pattern in kinds.items()}
    assert all(count > 20 for count in seen.values()), seen
    assert sum(seen.values()) == len(lines)
    verdicts = [official(objects, asked, COLOURS)[0] for objects, asked in CASES]
    assert 200 < sum(verdicts) < 3800


def test_a_reason_is_given_for_exactly_the_failures() -> None:
    for objects, asked in CASES:
        verdict, reason = official(objects, asked, COLOURS)
        assert verdict == (reason == "")


def test_the_strict_verdict_is_full_partial_credit_and_implies_the_official_one() -> None:
    for objects, asked in CASES:
        exact = strict(objects, asked)
        assert exact == (partial(objects, asked) == pytest.approx(1.0))
        assert partial(objects, asked) <= 1
        if exact:
            assert official(objects, asked, COLOURS)[0]


def test_the_official_verdict_ignores_less_confident_objects_unless_they_are_excluded() -> None:
    for objects, asked in CASES:
        more = {name: [*found, replace(found[0], score=0.0)] for name, found in objects.items()}
        before, after = official(objects, asked, COLOURS)[0], official(more, asked, COLOURS)[0]
        if not asked.get("exclude") and all(len(objects.get(c["class"], [])) >= c["count"] for c in asked["include"]):
            assert before == after
        strangers = {"zebra": [DetectedObject((0, 0, 9, 9), 0.9, "red")]}
        assert official(objects | strangers, asked, COLOURS) == official(objects, asked, COLOURS)
        assert partial(objects | strangers, asked) == partial(objects, asked)


def test_verdicts_do_not_depend_on_the_pictures_size_or_the_frame() -> None:
    for objects, asked in CASES:
        for changed in (moved(objects, np.array([37.0, -5.0]), 1.0), moved(objects, np.zeros(2), 2.0)):
            assert official(changed, asked, COLOURS) == official(objects, asked, COLOURS)
            assert strict(changed, asked) == strict(objects, asked)


def test_a_mirror_swaps_left_and_right() -> None:
    other = {"left of": "right of", "right of": "left of", "above": "above", "below": "below"}
    turned = 0
    for objects, asked in CASES:
        swapped = asked | {
            "include": [
                c | ({"position": [other[c["position"][0]], c["position"][1]]} if "position" in c else {})
                for c in asked["include"]
            ]
        }
        assert official(mirrored(objects), swapped, COLOURS)[0] == official(objects, asked, COLOURS)[0]
        turned += swapped != asked
    assert turned > 100


def test_relations_are_opposite_seen_from_the_other_side() -> None:
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for objects, _ in CASES:
        found = [o for some in objects.values() for o in some]
        for a, b in pairwise(found):
            assert {opposite[r] for r in relations(a, b)} == relations(b, a)
            assert not {"left of", "right of"} <= relations(a, b)


def test_selection_is_by_confidence_and_idempotent() -> None:
    for objects, asked in CASES:
        kept = select(objects, asked["tag"])
        floor = 0.9 if asked["tag"] == "counting" else 0.3
        assert select(kept, asked["tag"]) == kept
        assert all(o.score > floor for found in kept.values() for o in found)
        assert sum(map(len, kept.values())) == sum(o.score > floor for found in objects.values() for o in found)
