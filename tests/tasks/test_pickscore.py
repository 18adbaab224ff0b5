import json

import numpy as np
import pytest
import torch

from bench.backbones.micro.captions import caption, draw_brief, draw_scene
from bench.backbones.micro.world import Scene, Thing, draw
from tasks.pickscore import micro
from tasks.pickscore.gold import gold, gold_parts
from tasks.pickscore.task import PickScore


def picture(scene: Scene) -> torch.Tensor:
    return torch.from_numpy(draw(scene)).permute(2, 0, 1)[None]


GOOD = Scene("navy", (Thing("circle", "yellow", 8, 8),))


@pytest.mark.parametrize(
    ("part", "worse"),
    [
        ("harmony", Scene("slate", GOOD.things)),
        ("contrast", Scene("white", GOOD.things)),
        ("margins", Scene("navy", (Thing("circle", "yellow", 0, 0),))),
        ("cleanliness", Scene("navy", GOOD.things, specks=((0, 0), (3, 3)))),
        ("match", Scene("navy", (Thing("circle", "red", 8, 8),))),
    ],
)
def test_each_part_of_the_utility_falls_for_its_own_reason(part: str, worse: Scene) -> None:
    wanted = [[("circle", "yellow")]]
    before, after = gold_parts(picture(GOOD), wanted), gold_parts(picture(worse), wanted)
    assert after[part][0] < before[part][0] - 0.1
    assert gold(picture(worse), wanted)[0] < gold(picture(GOOD), wanted)[0]


def test_utility_of_the_ideal_picture_is_near_one() -> None:
    assert gold(picture(GOOD), [[("circle", "yellow")]])[0] > 0.95


def test_learned_scorer_ranks_unseen_pairs_as_the_utility_does() -> None:
    rng = np.random.default_rng(99)
    task = PickScore("micro")
    briefs = [draw_brief(rng, "illustration") for _ in range(300)]
    views = [
        torch.from_numpy(np.stack([draw(draw_scene(b, rng)) for b in briefs])).permute(0, 3, 1, 2) for _ in range(2)
    ]
    learned = [task.scorer.raw(v, [caption(b) for b in briefs]) for v in views]
    known = [gold(v, [micro.pairs(b) for b in briefs]) for v in views]
    clear = np.abs(known[0] - known[1]) > 0.1
    agree = np.sign(learned[0] - learned[1]) == np.sign(known[0] - known[1])
    assert agree[clear].mean() > 0.8


def test_rewards_are_in_the_unit_interval_and_deterministic() -> None:
    task = PickScore("micro")
    prompts = task.prompts("test")[:32]
    images = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, second = task.score(images, prompts), task.score(images, prompts)
    assert ((first.rewards >= 0) & (first.rewards <= 1)).all()
    np.testing.assert_array_equal(first.rewards, second.rewards)


def test_calibration_records_held_out_accuracy() -> None:
    calibration = json.loads((micro.FOLDER / "calibration.json").read_text())
    assert calibration["held_out_pair_accuracy"] > 0.7
