"""Means of forgetting and transfer, and performance profiles, of runs whose answers are known by hand."""

import numpy as np
import pytest

from bench.analysis.profiles import costs, profiles
from bench.analysis.records import Record
from bench.analysis.transfer import transfer

TASKS = ("a", "b", "c")
N = 40


def row(task: str, share: float, level: float) -> dict:
    """An evaluation whose mean is exactly `level`, a multiple of 1/40."""
    values = (np.arange(N) < round(level * N)).astype(float).tolist()
    return {"task": task, "headline": "x", "share": share, "strata": ["s"] * N, "prompts": [*range(N)], "rows": {"x": values}}


def record(seed: int, levels: dict[float, tuple[float, ...]], base: tuple[float, ...] = (0.1, 0.2, 0.3), nfe: int = 1000) -> Record:
    """A run with the levels of all tasks at each point."""
    rows = [row(task, share, level) for share, found in levels.items() for task, level in zip(TASKS, found, strict=True)]
    models = {
        "student": {task: row(task, 1.0, level) for task, level in zip(TASKS, levels[1.0], strict=True)},
        "base": {task: row(task, 0.0, level) for task, level in zip(TASKS, base, strict=True)},
    }
    summary = {"seed": seed, "models": models, "cost": {"evaluations": {"training": nfe}}}
    return Record(summary, rows, {})


def test_a_cascade_s_means_are_those_of_the_papers() -> None:
    """Stages of tasks b, c, a: R_{1,b} = .6, R_{2,c} = .7; at the end .5, .4, and .8 of a."""
    levels = {1 / 3: (0.1, 0.6, 0.25), 2 / 3: (0.2, 0.7, 0.7), 1.0: (0.8, 0.5, 0.4)}
    found = transfer([record(0, levels)], TASKS, {"b": 1 / 3, "c": 2 / 3})
    # Forgetting: the best earlier point minus the end, of all but the last task: b .7 - .5, c .7 - .4.
    assert found.forgetting.value == pytest.approx((0.2 + 0.3) / 2)
    # Backward: the end minus the end of the own stage: b .5 - .6, c .4 - .7.
    assert found.backward is not None and found.backward.value == pytest.approx((-0.1 - 0.3) / 2)
    # Forward: before the own stage minus the base: c .25 - .3, a .2 - .1.
    assert found.forward is not None and found.forward.value == pytest.approx((-0.05 + 0.1) / 2)


def test_a_line_without_stages_forgets_all_tasks_or_gains() -> None:
    levels = {0.5: (0.5, 0.5, 0.5), 1.0: (0.6, 0.4, 0.8)}
    found = transfer([record(0, levels), record(1, levels)], TASKS, {})
    assert found.forgetting.value == pytest.approx((-0.1 + 0.1 - 0.3) / 3)
    assert found.backward is None and found.forward is None
    only = transfer([record(0, {1.0: (0.6, 0.4, 0.8)})], TASKS, {})
    assert np.isnan(only.forgetting.value)  # nothing earlier is known


def test_profiles_count_problems_within_a_factor() -> None:
    targets = dict.fromkeys(TASKS, 0.5)
    fast = [record(0, {0.25: (0.5, 0.5, 0.1), 1.0: (0.6, 0.6, 0.6)}), record(1, {0.25: (0.5, 0.2, 0.2), 1.0: (0.6, 0.2, 0.6)})]
    slow = [record(seed, {0.5: (0.5, 0.5, 0.5), 1.0: (0.6, 0.6, 0.4)}) for seed in (0, 1)]
    solved = {"fast": costs(fast, TASKS, targets, 0.0), "slow": costs(slow, TASKS, targets, 0.0)}
    # Problems: (seed, task). fast: 250, 250, 1000; 250, never, 1000. slow: 500 everywhere.
    assert solved["fast"] == {(0, "a"): 250, (0, "b"): 250, (0, "c"): 1000, (1, "a"): 250, (1, "b"): np.inf, (1, "c"): 1000}
    found = profiles(solved)
    assert found["fast"] == [(1.0, 3 / 6), (2.0, 5 / 6)]
    assert found["slow"] == [(1.0, 3 / 6), (2.0, 1.0)]
    with_teachers = profiles({"fast": costs(fast, TASKS, targets, 0.0), "slow": costs(slow, TASKS, targets, 500.0)})
    assert with_teachers["slow"] == [(1.0, 3 / 6), (4.0, 1.0)]
    never = costs(slow, TASKS, dict.fromkeys(TASKS, 0.9), 0.0)
    assert profiles({"slow": never}) == {} and profiles({}) == {}
    # A run that begins at its target costs at least 1, of which there are multiples.
    start = costs([record(0, {0.0: (0.9, 0.9, 0.9), 1.0: (0.9, 0.9, 0.9)})], TASKS, targets, 0.0)
    assert set(start.values()) == {1.0}
