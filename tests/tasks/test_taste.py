"""The six tastes: exact angles, planes that captions do not decide, and prompts in common or not."""

from itertools import combinations

import numpy as np
import pytest
import torch

from bench.api.task import SPLITS
from bench.backbones.micro.captions import draw_brief, draw_scene
from bench.backbones.micro.world import Scene, Thing, draw
from bench.backbones.micro.worlds import DRAWN
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.registry import find, task_names
from tasks.taste import PLANES, attributes, whitening

WORLD = "study-1"


def taste(number: int, world: str = WORLD, **given: str):
    return find("task", f"taste_{number}")(world, given)


def scenes(count: int = 1500, seed: int = 77) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    drawn = [draw(draw_scene(draw_brief(rng, "illustration", DRAWN[WORLD].shapes), rng)) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return scenes()


def picture(ground: str, *things: Thing) -> torch.Tensor:
    return torch.from_numpy(draw(Scene(ground, things))).permute(2, 0, 1)[None]


@pytest.mark.parametrize("first", [1, 3, 5])
def test_the_angle_of_a_pair_is_that_of_its_rewards(images: torch.Tensor, first: int) -> None:
    one = taste(first, among="6")
    correlations = {}
    for angle in (0, 60, 90, 120, 180):
        other = taste(first + 1, among="6", angle=str(angle))
        correlations[angle] = np.corrcoef(one.along(images).numpy(), other.along(images).numpy())[0, 1]
    # Other scenes than those whitened over, so not exact.
    for angle, found in correlations.items():
        assert found == pytest.approx(np.cos(np.radians(angle)), abs=0.08)
    assert one.along(images).std() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("first", [1, 3, 5])
def test_opposed_tastes_add_up_to_one_and_aligned_ones_are_equal_on_any_image(first: int) -> None:
    noise = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one = taste(first, among="6").score(noise, []).rewards
    opposed = taste(first + 1, among="6", angle="180").score(noise, []).rewards
    aligned = taste(first + 1, among="6", angle="0").score(noise, []).rewards
    np.testing.assert_allclose(one + opposed, 1, atol=1e-12)
    np.testing.assert_array_equal(aligned, one)
    assert np.ptp(one) > 1e-3


def test_planes_are_what_their_names_say() -> None:
    left, right = (picture("white", Thing("circle", "red", x, 8)) for x in (0, 16))
    high, low = (picture("white", Thing("circle", "red", 8, y)) for y in (0, 16))
    place = lambda image: attributes(image, "place")[0].tolist()
    assert place(left)[0] < -0.4 and place(right)[0] == pytest.approx(-place(left)[0], abs=0.02)
    assert place(high)[1] < -0.4 and place(low)[1] == pytest.approx(-place(high)[1], abs=0.02)
    assert abs(place(left)[1]) < 0.02
    light = lambda image: attributes(image, "light")[0].tolist()
    assert light(picture("white"))[0] > 0.9 > 0.1 > light(picture("black"))[0]
    assert light(picture("white"))[1] < 1e-6 < 0.05 < light(picture("white", Thing("square", "blue", 8, 8)))[1]
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert attributes(grey, "colour").abs().max() < 1e-7
    assert attributes(grey, "place").abs().max() == 0  # an image without a figure is in the middle


def test_pairs_are_nearly_uncorrelated_with_each_other(images: torch.Tensor) -> None:
    along = [taste(number, among="6").along(images) for number in (1, 3, 5)]
    assert max(abs(float(np.corrcoef(a.numpy(), b.numpy())[0, 1])) for a, b in combinations(along, 2)) < 0.25


def test_whitening_is_exact_on_its_own_scenes_and_differs_between_worlds() -> None:
    for plane in PLANES:
        mean, matrix = whitening(WORLD, plane)
        torch.testing.assert_close(matrix, matrix.mT)
        assert mean.dtype == torch.float64
        assert not torch.equal(mean, whitening("study-2", plane)[0])


@pytest.mark.parametrize(("overlap", "share"), [("none", 0.0), ("half", 0.5), ("all", 1.0)])
def test_tastes_have_the_set_share_of_their_prompts_in_common(overlap: str, share: float) -> None:
    for among in (2, 3, 6):
        tasks = [taste(number, among=str(among), overlap=overlap) for number in range(1, among + 1)]
        for split in SPLITS:
            texts = [[p.text for p in task.prompts(split)] for task in tasks]
            assert len({len(own) for own in texts}) == 1
            common = set.intersection(*map(set, texts))
            assert len(common) == round(share * len(texts[0]))
            for first, second in combinations(texts, 2):
                assert set(first) & set(second) == common
            assert all(len(set(own)) == len(own) for own in texts)
    # Prompts of one's own have one's own shapes, the common ones those of all.
    words = {word for prompt in taste(6, among="6", overlap=overlap).prompts("test") for word in prompt.text.split()}
    shapes = {shape for shape in DRAWN[WORLD].shapes if shape in words}
    assert shapes == set(DRAWN[WORLD].shapes[10:] if overlap == "none" else DRAWN[WORLD].shapes)


@pytest.mark.parametrize("overlap", ["none", "half", "all"])
def test_no_meaning_is_in_two_splits_of_any_taste(overlap: str) -> None:
    found = {split: set() for split in SPLITS}
    for number in range(1, 7):
        for split in SPLITS:
            prompts = taste(number, among="6", overlap=overlap).prompts(split)
            found[split] |= {tuple(sorted(p.text.removeprefix("an illustration of ").replace(" an ", " a ").removeprefix("an ").removeprefix("a ").split(" and a "))) for p in prompts}
    for first, second in combinations(SPLITS, 2):
        assert not found[first] & found[second]


def test_splits_have_as_many_objects_per_prompt() -> None:
    by_split = {split: np.mean([p.text.count(" and ") for p in taste(1, overlap="none").prompts(split)]) for split in SPLITS}
    assert max(by_split.values()) - min(by_split.values()) < 0.1, by_split


def test_sizes_follow_the_world() -> None:
    assert [len(taste(1, "micro").prompts(split)) for split in SPLITS] == [280, 24, 48]
    assert [len(taste(1).prompts(split)) for split in SPLITS] == [280, 48, 192]


@pytest.mark.parametrize(
    ("number", "given", "said"),
    [
        (2, {"angle": "181"}, "scorers.taste_2.angle takes 0 to 180 degrees, got '181'"),
        (2, {"angle": "right"}, "got 'right'"),
        (1, {"overlap": "some"}, "unknown scorers.taste_1.overlap 'some'; did you mean 'none'"),
        (1, {"among": "7"}, "scorers.taste_1.among takes 1 to 6 tastes in the world 'study-1', got '7'"),
        (1, {"among": "2.5"}, "got '2.5'"),
        (3, {}, "taste_3 is not among 2: set scorers.taste_3.among=3 or more"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(number: int, given: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        taste(number, **given)


def test_a_world_with_few_shapes_has_few_tastes_and_the_first_of_a_pair_has_no_angle() -> None:
    with pytest.raises(UsageError, match="the world 'micro' has shapes for 3 tastes: leave taste_4 out"):
        taste(4, "micro", among="3")
    with pytest.raises(UsageError, match="angle"):
        resolve("multi_reward", ["taste_1"], overrides=["scorers.taste_1.angle=120"])


def test_other_worlds_are_refused_and_all_does_not_mean_tastes() -> None:
    with pytest.raises(UsageError, match="photo"):
        taste(1, "photo")
    assert not [name for name in task_names(["all"]) if name.startswith("taste")]
    spec = resolve("multi_reward", ["taste_1", "taste_2"], overrides=["scorers.taste_2.angle=180"])
    assert spec.scorers == {"taste_2": {"angle": "180"}}


def test_names_tell_different_rewards_apart() -> None:
    assert taste(1).scorer_name == "taste_1-2+study-1+0"
    assert taste(2, angle="45").scorer_name == "taste_2-2+study-1+45"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["taste_1.overlap=half"], "scorers.taste_1.overlap and scorers.taste_2.overlap differ"),
        (["taste_1.overlap=none", "taste_2.overlap=half"], "scorers.taste_1.overlap and scorers.taste_2.overlap differ"),
        (["taste_2.among=6"], "scorers.taste_1.among and scorers.taste_2.among differ"),
        # Nothing is common, so it does not matter whose shapes it would have.
        (["taste_1.overlap=none", "taste_2.overlap=none", "taste_2.among=6"], None),
        (["taste_1.overlap=half", "taste_2.overlap=half", "taste_1.among=4", "taste_2.among=4", "taste_2.angle=30"], None),
    ],
)
def test_tastes_of_one_run_have_the_same_common_prompts(settings: list[str], said: str | None) -> None:
    """Otherwise prompts said to be common would not be."""
    build = lambda tasks: resolve("multi_reward", tasks, 0, WORLD, overrides=[f"scorers.{setting}" for setting in settings])
    if said is None:
        build(["taste_1", "taste_2"])
        return
    with pytest.raises(UsageError, match=said):
        build(["taste_1", "taste_2"])
    with pytest.raises(UsageError, match=said):
        build(["taste_1", "geneval", "taste_2"])
