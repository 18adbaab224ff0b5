"""The study's worlds: legible shapes, splits without a common meaning, and micro as it was."""

import hashlib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.backbones.micro import captions, describe_world
from bench.backbones.micro.captions import caption, draw_brief, draw_scene, garble
from bench.backbones.micro.files import WEIGHTS
from bench.backbones.micro.reader import find_shapes
from bench.backbones.micro.tokens import Tokenizer
from bench.backbones.micro.world import SHAPES, STUDY_SHAPES, draw, shape_masks
from bench.backbones.micro.worlds import DRAWN, STUDY, DrawnWorld
from bench.errors import MissingError, UsageError
from bench.scoring.loading import load_features
from tasks.geneval.drawn import meaning
from tasks.geneval.rules import official
from tasks.geneval.task import GenEval
from tasks.ocr.formula import target_text
from tasks.ocr.task import Ocr
from tasks.pickscore import micro
from tasks.pickscore.task import SIZES, PickScore, drawn_scorer

SPLITS = ("train", "validation", "test")


def test_no_two_shapes_are_more_alike_than_circle_and_square() -> None:
    masks = {name: mask.ravel() for name, mask in shape_masks(shapes=STUDY_SHAPES).items()}
    alike = {pair: np.corrcoef(masks[pair[0]], masks[pair[1]])[0, 1] for pair in combinations(masks, 2)}
    assert len(masks) == 12
    assert max(alike, key=lambda pair: alike[pair]) == ("circle", "square")
    assert sorted(alike.values())[-2] < 0.8 < alike["circle", "square"]


@pytest.mark.parametrize("kind", ["counting", "position", "color_attr", "illustration"])
def test_what_is_drawn_is_read(kind: str) -> None:
    rng = np.random.default_rng(5)
    briefs = [draw_brief(rng, kind, STUDY_SHAPES) for _ in range(200)]
    images = torch.from_numpy(np.stack([draw(draw_scene(brief, rng)) for brief in briefs])).permute(0, 3, 1, 2)
    for brief, marks in zip(briefs, find_shapes(images, shapes=STUDY_SHAPES), strict=True):
        seen = [mark for mark in marks if mark.score > 0.5]
        assert sorted(mark.shape for mark in seen) == sorted(brief.shapes)
        if all(brief.colours):
            wanted = zip(brief.shapes, brief.colours, strict=True)
            assert sorted((mark.shape, mark.colour) for mark in seen) == sorted(wanted)


def test_every_caption_of_a_world_is_in_its_vocabulary_and_no_other_word_is_needed() -> None:
    rng, tokenizer = np.random.default_rng(1), Tokenizer(STUDY_SHAPES)
    used = set()
    for kind in captions.MISTAKES:
        for _ in range(300):
            brief = draw_brief(rng, kind, STUDY_SHAPES)
            for told in (brief, garble(brief, rng, STUDY_SHAPES)):
                used |= set(tokenizer.ids_of(caption(told)))
    assert used == set(tokenizer.ids.values()) - {tokenizer.ids["one"]}
    with pytest.raises(UsageError, match="'moon' is not in the micro world's vocabulary"):
        Tokenizer(SHAPES).ids_of("a photo of a moon")


def meanings(task: str, world: str, split: str) -> list:
    if task == "geneval":
        return [meaning(prompt.metadata) for prompt in GenEval(world).prompts(split)]
    if task == "ocr":
        return [target_text(prompt.text) for prompt in Ocr(world).prompts(split)]
    return [tuple(sorted(micro.pairs(brief))) for brief in micro.briefs(DRAWN[world], SIZES)[split]]


@pytest.mark.parametrize("world", [world.name for world in STUDY])
@pytest.mark.parametrize("task", ["geneval", "ocr", "pickscore"])
def test_splits_have_no_meaning_in_common(task: str, world: str) -> None:
    found = {split: set(meanings(task, world, split)) for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        assert not found[first] & found[second]


@pytest.mark.parametrize("world", [world.name for world in STUDY])
def test_no_task_trains_on_the_objects_that_another_holds_out(world: str) -> None:
    coloured = {
        split: {found[1:] for found in meanings("geneval", world, split) if found[0] == "color_attr"} for split in SPLITS
    }
    illustrated = {
        split: {tuple((shape, 1, colour) for shape, colour in found) for found in meanings("pickscore", world, split)}
        for split in SPLITS
    }
    assert min(map(len, coloured.values())) > 30
    assert not set.union(*coloured.values()) & set.union(*illustrated.values())


@pytest.mark.parametrize("world", [world.name for world in STUDY])
def test_held_out_prompts_are_meanings(world: str) -> None:
    """Intervals keep the images of a prompt together; two wordings of one meaning would count as two prompts."""
    for split in ("validation", "test"):
        prompts = GenEval(world).prompts(split)
        assert len({p.text for p in prompts}) == len({meaning(p.metadata) for p in prompts})


def test_micros_splits_do_have_meanings_in_common() -> None:
    # What the study's worlds are for; if this fails, the test above would not notice a broken `meaning`.
    train, test = (set(meanings("geneval", "micro", split)) for split in ("train", "test"))
    assert len(train & test) > 20


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("circle", "left of", "square"), ("square", "right of", "circle"), True),
        (("circle", "above", "square"), ("square", "below", "circle"), True),
        (("circle", "left of", "square"), ("circle", "right of", "square"), False),
        (("circle", "left of", "square"), ("square", "left of", "circle"), False),
    ],
)
def test_a_relation_and_its_inverse_are_one_meaning(one: tuple, other: tuple, same: bool) -> None:
    def record(target: str, relation: str, reference: str) -> dict:
        place = {"class": target, "count": 1, "position": [relation, 0]}
        return {"tag": "position", "include": [{"class": reference, "count": 1}, place]}

    assert (meaning(record(*one)) == meaning(record(*other))) is same
    # By GenEval's rule, the same pictures are right for both.
    rng = np.random.default_rng(0)
    scenes = [draw_scene(draw_brief(rng, "position"), rng) for _ in range(400)]
    images = torch.from_numpy(np.stack([draw(scene) for scene in scenes])).permute(0, 3, 1, 2)
    read = GenEval("micro").reader(images, [])
    verdicts = [[official(objects, record(*told), ())[0] for objects in read] for told in (one, other)]
    assert any(verdicts[0])
    assert (verdicts[0] == verdicts[1]) is same


@pytest.mark.parametrize("world", [world.name for world in STUDY])
def test_held_out_splits_are_larger_than_micros(world: str) -> None:
    for task in (GenEval, Ocr):
        assert len(task(world).prompts("test")) == 4 * len(task("micro").prompts("test"))
        assert len(task(world).prompts("validation")) == 2 * len(task("micro").prompts("validation"))
    by_tag: dict[str, set] = {}
    for prompt in GenEval(world).prompts("test"):
        by_tag.setdefault(prompt.stratum, set()).add(meaning(prompt.metadata))
    assert min(len(found) for found in by_tag.values()) >= 4


def test_worlds_differ_in_their_prompts() -> None:
    for task in ("geneval", "ocr", "pickscore"):
        tests = [set(meanings(task, world.name, "test")) for world in STUDY]
        assert tests[0] != tests[1] != tests[2] != tests[0]


# Weights, teachers and stored records were made with these prompts, in this order.
LISTS = {
    "geneval": ("6c6c3b8820", "badb70c817", "3eadd247f0"),
    "ocr": ("caaa7d2863", "3b0a50c27e", "81d97dd956"),
    "pickscore": ("7d75e32508", "094650c882", "2e45f86107"),
}


@pytest.mark.parametrize("task", [GenEval, Ocr, PickScore])
def test_micros_prompts_are_those_of_its_stored_records(task: type) -> None:
    lists = [[(p.text, p.stratum, p.metadata) for p in task("micro").prompts(split)] for split in SPLITS]
    assert tuple(hashlib.sha256(repr(found).encode()).hexdigest()[:10] for found in lists) == LISTS[task.name]


def test_a_world_without_its_weights_says_how_to_get_them(tmp_path: Path) -> None:
    lacking = DrawnWorld("study-9", STUDY_SHAPES, 9, STUDY[0].stages, {}, True, tmp_path, ())
    described = describe_world(lacking)
    for use in (described.fingerprint, lambda: described.load("cpu"), lambda: drawn_scorer(lacking)):
        with pytest.raises(MissingError, match=r"the world 'study-9' has no .*(codec|calibration).*; reinstall") as caught:
            use()
        assert str(WEIGHTS / "README.md") in str(caught.value)


def test_feature_spaces_of_two_worlds_have_different_names() -> None:
    names = [load_features(world, {}).name for world in DRAWN]
    assert names == ["micro-codec-1", "study-1-codec-1", "study-2-codec-1", "study-3-codec-1"]
