import json

import numpy as np
import pytest
import torch

from bench.api.task import Prompt
from bench.backbones.micro.captions import caption, draw_brief, draw_scene
from bench.backbones.micro.world import Scene, Thing, draw
from bench.backbones.micro.worlds import DRAWN
from bench.errors import UsageError
from tasks.geneval.task import GenEval
from tasks.ocr.task import Ocr
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
    calibration = json.loads((DRAWN["micro"].preference / "calibration.json").read_text())
    assert calibration["held_out_pair_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "the record has no 'wanted': a list of"),
        ({"tag": "counting", "include": [{"class": "square", "count": 2}]}, "the record has no 'wanted'"),
        ({"wanted": []}, r"wanted should be a list .*, not \[\]"),
        ({"wanted": "square"}, "wanted should be a list"),
        ({"wanted": [["square"]]}, r"wanted\[0\] should be \[shape, colour\], not \['square'\]"),
        ({"wanted": [["square", "blue"], ["square", 3]]}, r"wanted\[1\] should be"),
        ({"wanted": [["Square", "blue"]]}, r"unknown shape in wanted\[0\]: 'Square'; did you mean 'square'"),
        ({"wanted": [["square", "Blue"]]}, r"unknown colour in wanted\[0\]: 'Blue'; did you mean 'blue'"),
        ({"wanted": [["blue", "square"]]}, r"unknown shape in wanted\[0\]: 'blue'"),
    ],
)
def test_records_that_the_utility_cannot_judge_are_refused(metadata: dict, said: str) -> None:
    task = PickScore("micro")
    known = task.prompts("test")[0]
    with pytest.raises(UsageError, match=said):
        task.check(Prompt(known.text, "", metadata))
    PickScore("photo").check(Prompt("a photo of a cat", "", metadata))


def test_its_own_prompts_pass_and_words_that_it_does_not_know_do_not() -> None:
    task = PickScore("micro")
    for split in ("train", "validation", "test"):
        for prompt in task.prompts(split):
            task.check(prompt)
    told = json.loads(json.dumps(prompt.metadata))  # as a file has them: lists
    task.check(Prompt(prompt.text, "", told))
    with pytest.raises(UsageError, match="'cat' is not in the micro world's vocabulary"):
        task.check(Prompt("a photo of a cat", "", told))


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (32, 64)])
@pytest.mark.parametrize("kind", [GenEval, Ocr, PickScore])
def test_micro_pictures_of_another_size_are_refused(kind: type, size: tuple[int, int]) -> None:
    """Enlarged, a picture would be read as if its objects were others."""
    task = kind("micro")
    prompts = task.prompts("test")[:2]
    task.score(torch.rand(2, 3, 32, 32), prompts)
    with pytest.raises(UsageError, match=rf"have 32 x 32 pixels, not {size[1]} x {size[0]}"):
        task.score(torch.rand(2, 3, *size), prompts)
