"""Forgetting against a matrix worked by hand."""

import numpy as np
import pytest

from bench.analysis.forgetting import forgetting, score_matrix
from bench.analysis.overoptimisation import over_optimisation


def run(points: dict[float, dict[str, list[float]]]) -> list[dict]:
    return [
        {"share": share, "task": task, "headline": "m", "strata": [""] * len(values), "rows": {"m": values}}
        for share, scores in points.items()
        for task, values in scores.items()
    ]


# A cascade over a then b: a is learned to .75, then falls to .25; b rises at the end.
SEEDS = [
    run({0.5: {"a": [1.0, 0.5], "b": [0.0, 0.0]}, 1.0: {"a": [0.5, 0.0], "b": [1.0, 0.5]}}),
    run({0.5: {"a": [0.5, 1.0], "b": [0.0, 0.0]}, 1.0: {"a": [0.0, 0.5], "b": [0.5, 1.0]}}),
]


def test_matrix_by_hand() -> None:
    shares, matrix = score_matrix(SEEDS[0], ("a", "b"))
    assert shares == [0.5, 1.0]
    np.testing.assert_allclose(matrix, [[0.75, 0.0], [0.25, 0.75]])


def test_what_was_not_evaluated_is_nan() -> None:
    _, matrix = score_matrix(SEEDS[0][:3], ("a", "b"))
    assert np.isnan(matrix[1, 1])
    assert np.isnan(forgetting([[], []], "a").drop_from_best.value)


def test_one_point_says_nothing_of_a_course() -> None:
    ends = [rows[2:] for rows in SEEDS]
    assert len({row["share"] for rows in ends for row in rows}) == 1
    found = forgetting(ends, "a", own_stage_end=1.0)
    assert np.isnan(found.drop_from_best.value)
    assert found.change_after_own_stage is None
    gold = over_optimisation([with_gold([(1.0, 0.8, 0.6)])], "p")
    assert gold.gold[0].value == pytest.approx(0.6)
    assert np.isnan(gold.gold_drop.value) and np.isnan(gold.proxy_meanwhile.value)


def test_forgetting_by_hand() -> None:
    a, b = forgetting(SEEDS, "a", own_stage_end=0.5), forgetting(SEEDS, "b", own_stage_end=1.0)
    assert a.drop_from_best.value == pytest.approx(0.5)
    assert a.change_after_own_stage.value == pytest.approx(-0.5)
    assert b.drop_from_best.value == 0
    assert b.change_after_own_stage.value == 0
    assert forgetting(SEEDS, "a").change_after_own_stage is None


def with_gold(points: list[tuple[float, float, float]]) -> list[dict]:
    """Rows of one run: (share, proxy, gold) of two pictures each."""
    return [
        {
            "share": share, "task": "p", "headline": "reward", "strata": ["", ""],
            "rows": {"reward": [proxy - 0.1, proxy + 0.1], "gold": [gold - 0.1, gold + 0.1]},
        }
        for share, proxy, gold in points
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("recorded", "change"), [((0.3333, 0.5, 1.0), -0.6), ((0.3337, 0.5, 1.0), -0.6), ((0.5, 1.0), None)]
)
def test_a_stages_end_is_the_nearest_recorded_point_or_none(recorded: tuple[float, ...], change: float | None) -> None:
    """Points are written with few digits: 0.3333 is the end of the first of three stages, 0.5 is not."""
    scores = {0.5: 0.5, 1.0: 0.2}
    rows = [
        {"share": s, "task": "a", "headline": "m", "strata": [""] * 2, "rows": {"m": [scores.get(s, 0.8)] * 2}}
        for s in recorded
    ]
    found = forgetting([rows], "a", own_stage_end=1 / 3).change_after_own_stage
    assert found is None if change is None else found.value == pytest.approx(change)


def test_what_the_next_stage_undoes_and_a_later_one_brings_back() -> None:
    """A cascade of three: the first task falls in the second stage and is back at the end of all."""
    runs = [
        run({1 / 3: {"a": [0.8 + e, 0.8 - e]}, 2 / 3: {"a": [0.3 + e, 0.3]}, 1.0: {"a": [0.8, 0.8 - 2 * e]}})
        for e in (0.0, 0.05, 0.1)
    ]
    found = forgetting(runs, "a", own_stage_end=1 / 3, next_stage_end=2 / 3)
    assert found.change_in_next_stage.value == pytest.approx(-0.475)
    assert found.change_in_next_stage.high < 0
    assert found.change_after_own_stage.value == pytest.approx(-0.05)
    assert found.change_after_own_stage.high > 0
    assert (
        forgetting(runs, "a", own_stage_end=2 / 3, next_stage_end=1.0).change_in_next_stage is None
    )  # that is the end
    assert forgetting(runs, "a", own_stage_end=1 / 3, next_stage_end=0.5).change_in_next_stage is None  # not recorded


def test_a_proxy_that_rises_while_gold_falls() -> None:
    runs = [with_gold([(0.5, 0.6, 0.5), (1.0, 0.8, 0.3)]), with_gold([(0.5, 0.6, 0.7), (1.0, 0.9, 0.4)])]
    found = over_optimisation(runs, "p")
    assert found.shares == [0.5, 1.0]
    assert [e.value for e in found.proxy] == pytest.approx([0.6, 0.85])
    assert [e.value for e in found.gold] == pytest.approx([0.6, 0.35])
    assert found.gold_drop.value == pytest.approx(0.25)
    assert found.proxy_meanwhile.value == pytest.approx(0.25)


def test_no_drop_where_gold_rises_to_the_end_and_nothing_without_gold() -> None:
    found = over_optimisation([with_gold([(0.5, 0.6, 0.5), (1.0, 0.8, 0.6)])], "p")
    assert (found.gold_drop.value, found.proxy_meanwhile.value) == (0, 0)
    assert over_optimisation(SEEDS, "a") is None
