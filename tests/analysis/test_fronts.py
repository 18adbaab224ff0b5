"""Fronts and hypervolumes against numbers computed by hand."""

import itertools

import numpy as np
import pytest

from bench.analysis.fronts import TEACHERS, difference, front, fronts, hypervolume
from bench.analysis.records import Record
from bench.analysis.stats import Design, resampled_means, resampled_points
from bench.errors import UsageError

TASKS = ("warm", "cold")
PROMPTS = 8


def row(task: str, value: float | np.ndarray) -> dict:
    values = np.broadcast_to(value, PROMPTS).tolist()
    return {
        "task": task,
        "headline": "reward",
        "strata": [""] * PROMPTS,
        "rows": {"reward": values},
        "prompts": list(range(PROMPTS)),
    }


def record(
    scores: tuple, seed: int = 0, weights: dict | None = None, teachers: bool = False, tasks=TASKS, **params
) -> Record:
    models = {"student": scores, "base": [0.5] * len(tasks)}
    if teachers:
        models |= {"teacher warm": (0.9, 0.1), "teacher cold": (0.2, 0.8)}
    shown = {model: {task: row(task, value) for task, value in zip(tasks, values)} for model, values in models.items()}
    spec = {"method": "multi_reward", "seed": seed, "params": params | ({"weights": weights} if weights else {})}
    return Record({"seed": seed, "models": shown}, [], spec)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.5, 0.5)], 0.25),
        ([(0.2, 0.8), (0.8, 0.2)], 0.2 * 0.8 + 0.6 * 0.2),
        ([(0.2, 0.8), (0.8, 0.2), (0.1, 0.1)], 0.28),  # the last is dominated
        ([(0.2, 0.8), (-0.5, 3.0)], 0.16),  # nothing above 0 in every task
        ([(1.0, 0.5, 0.5), (0.5, 1.0, 0.5), (0.5, 0.5, 1.0)], 0.125 + 3 * 0.125),
        ([(0.5, 0.5, 0.5, 0.5), (1.0, 0.25, 0.25, 0.25)], 0.5**4 + 0.5 * 0.25**3),
    ],
)
def test_hypervolumes_by_hand(points: list, expected: float) -> None:
    assert hypervolume(np.array(points)) == pytest.approx(expected)


def volume_by_inclusion(points: np.ndarray) -> float:
    """Inclusion and exclusion over the boxes from 0 to the points."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            total += (-1) ** (size + 1) * np.prod(np.min(chosen, 0))
    return total


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_hypervolumes_are_those_of_the_boxes(tasks: int) -> None:
    points = np.random.default_rng(tasks).random((6, tasks))
    assert hypervolume(points) == pytest.approx(volume_by_inclusion(points))


def test_lines_that_differ_only_in_weights_are_a_front() -> None:
    groups = {
        "rl weights.warm=4": [record((0.8, 0.3), weights={"warm": 4.0})],
        "rl": [record((0.6, 0.6))],
        "rl weights.warm=0.25": [record((0.2, 0.5), weights={"warm": 0.25})],
        "rl size=2": [record((0.9, 0.9), size=2)],
        "rl size=3,weights.warm=4": [record((0.7, 0.1), size=3, weights={"warm": 4.0})],
        "rl size=3,weights.warm=1": [record((0.1, 0.7), size=3, weights={"warm": 1.0})],
    }
    first, second = fronts(groups, TASKS)
    assert (first.label, second.label) == ("rl", "rl size=3")
    assert list(first.points) == ["rl weights.warm=4", "rl", "rl weights.warm=0.25"]
    assert first.best == ("rl weights.warm=4", "rl")  # (0.2, 0.5) is below (0.6, 0.6)
    assert first.hypervolume.value == pytest.approx(0.6 * 0.6 + 0.2 * 0.3)
    assert second.best == tuple(second.points) and second.hypervolume.value == pytest.approx(0.07 + 0.06)
    assert fronts({"rl": groups["rl"], "rl size=2": groups["rl size=2"]}, TASKS) == []


def test_fronts_of_equal_name_are_told_apart() -> None:
    """As in a report on two comparisons, whose lines have the same labels and other settings."""
    lines = lambda size, end: {
        f"rl weights.warm={w}{end}": [record((0.5, w), weights={"warm": w}, size=size)] for w in (0.5, 2.0)
    }
    first, second = fronts(lines(1, "") | lines(2, " (abc)"), TASKS)
    assert (first.label, second.label) == ("rl", "rl (rl weights.warm=0.5 (abc))")


def test_only_shared_seeds_count_and_the_teachers_are_a_front_too() -> None:
    groups = {
        "soup weights.warm=0": [record((0.2 + s / 10, 0.8), s, {"warm": 0.0}, teachers=True) for s in (0, 1, 2)],
        "soup weights.warm=1": [record((0.8, 0.2), s, {"warm": 1.0}, teachers=True) for s in (1, 0)],
    }
    soup, taught = fronts(groups, TASKS)
    assert np.isnan(soup.against_first.value)
    assert taught.against_first.value == pytest.approx(taught.hypervolume.value - soup.hypervolume.value)
    assert soup.seeds == 2 and soup.points["soup weights.warm=0"]["warm"].value == pytest.approx(0.25)
    assert taught.label == TEACHERS and list(taught.points) == ["teacher warm", "teacher cold"]
    assert taught.hypervolume.value == pytest.approx(0.2 * 0.8 + 0.7 * 0.1)
    groups["soup weights.warm=1"] = [record((0.8, 0.2), 7, {"warm": 1.0}, teachers=True)]
    assert fronts(groups, TASKS) == []


def test_joint_resamples_are_those_of_every_mean() -> None:
    rng = np.random.default_rng(0)
    design = Design(np.repeat(["a", "b"], 6), np.arange(12))
    points = [{task: (rng.random((3, 12)), design) for task in TASKS} for _ in range(2)]
    found = resampled_points(points)
    assert found.shape[1:] == (2, 2)
    for k, t in np.ndindex(2, 2):
        alone = resampled_means(points[k][TASKS[t]][0], design)
        # Quantiles, because Student's t with two degrees of freedom has no variance.
        ends = [np.quantile(draws, [0.05, 0.25, 0.5, 0.75, 0.95]) for draws in (found[:, k, t], alone)]
        np.testing.assert_allclose(*ends, atol=0.02)
    same = resampled_points([points[0], points[0]])
    np.testing.assert_array_equal(same[:, 0], same[:, 1])  # one draw of seeds and prompts for all models


@pytest.mark.parametrize("true", [[(0.2, 0.8), (0.5, 0.5), (0.5, 0.5), (0.8, 0.2)], [(0.3, 0.9), (0.9, 0.4)]])
def test_intervals_cover_the_true_hypervolume(true: list, monkeypatch) -> None:
    """Also where several points are equally good, so that noise alone raises the hypervolume."""
    monkeypatch.setattr("bench.analysis.stats.RESAMPLES", 400)
    rng, design, hits = np.random.default_rng(1), Design(np.repeat("", 48), np.arange(48)), 0
    expected = hypervolume(np.array(true))
    for _ in range(80):
        shared = 0.1 * rng.normal(size=(2, 48))
        points = {}
        for k, scores in enumerate(true):
            noise = 0.03 * rng.normal(size=(2, 3, 1)) + 0.2 * rng.normal(size=(2, 3, 48))
            points[str(k)] = {task: (scores[t] + shared[t] + noise[t], design) for t, task in enumerate(TASKS)}
        found = front("", points).hypervolume
        hits += found.low <= expected <= found.high
    assert hits / 80 >= 0.88


def test_a_difference_is_paired_by_seed_and_prompt_whatever_the_order_of_the_seeds() -> None:
    rng, design = np.random.default_rng(0), Design(np.repeat("", 30), np.arange(30))
    shared = rng.normal(0.5, 0.1, (2, 3, 30))  # tasks, seeds, prompts
    a, b = ({name: {t: (level * shared[i], design) for i, t in enumerate(TASKS)} for name in "x"} for level in (1.1, 1))
    gap, alone = difference(a, b), front("", a).hypervolume
    assert gap.value == pytest.approx(alone.value - front("", b).hypervolume.value)
    assert 0 < gap.low < gap.high and gap.high - gap.low < 0.3 * (alone.high - alone.low)
    assert difference(a, a).value == 0
    scores = {0: (0.2, 0.8), 1: (0.3, 0.7), 2: (0.4, 0.6)}
    lines = lambda order, size: {
        f"rl size={size},weights.warm={w}": [
            record(np.add(scores[s], w / 10), s, {"warm": w}, size=size) for s in order
        ]
        for w in (1.0, 2.0)
    }
    (_, same) = fronts(lines((0, 1, 2), 1) | lines((2, 0, 1), 2), TASKS)
    assert same.against_first.value == 0 and np.isnan(same.against_first.low)  # equal seed by seed


def test_without_anything_to_resample_there_is_no_interval() -> None:
    alone = Design(np.array(["a", "b"]), np.arange(2))
    found = front("", {name: {task: (np.full((1, 2), 0.5), alone) for task in TASKS} for name in "xy"})
    assert found.hypervolume.value == 0.25 and np.isnan(found.hypervolume.low)
    assert found.best == ("x", "y")


def test_points_on_other_prompts_are_refused() -> None:
    values = np.full((1, 2), 0.5)
    points = {name: {"warm": (values, Design(np.array([name, name]), np.arange(2)))} for name in "xy"}
    with pytest.raises(UsageError, match="different prompts"):
        front("", points)


def test_one_line_for_all_weights_is_a_front_beside_lines_with_fixed_weights() -> None:
    """Also if its label is theirs without the weights, as in a report on two comparisons."""
    corners = {"warm=1,cold=0": (0.9, 0.2), "warm=0,cold=1": (0.2, 0.9)}
    made = []
    for seed in range(2):
        one = record((0.5, 0.5), seed, preference="drawn")
        points = {point: {task: row(task, v) for task, v in zip(TASKS, scores)} for point, scores in corners.items()}
        made.append(Record(one.summary | {"points": points}, [], one.spec))
    fixed = {
        f"multi_reward weights.cold={weight}": [record(scores, seed, {"cold": weight}) for seed in range(2)]
        for weight, scores in {0.5: (0.8, 0.3), 2: (0.3, 0.8)}.items()
    }
    by_label = {front.label: front for front in fronts(fixed | {"multi_reward": made}, TASKS)}
    assert list(by_label) == ["multi_reward", "multi_reward (one for all weights)"]
    assert by_label["multi_reward"].hypervolume.value == pytest.approx(0.8 * 0.3 + 0.3 * 0.5)
    assert by_label["multi_reward (one for all weights)"].hypervolume.value == pytest.approx(0.9 * 0.2 + 0.2 * 0.7)
