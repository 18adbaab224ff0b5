"""Cost with the measured weight of a backward pass, and when each run reaches the target."""

import json
from pathlib import Path

import pytest

from bench.analysis.comparison import nfe_at, reached_between
from bench.analysis.records import Record
from bench.backbones.meter import Meter
from bench.config.resolve import describe
from bench.errors import DamagedError
from bench.store.points import with_nfe
from bench.system.workers import ALONE
from report.cost_table import until_target, weighted
from report.evidence import collect
from report.lines import pools
from tests.report.synthetic import TASKS, make_run


def record(*points: tuple[float, float], nfe: int = 1000, backward: int | None = None, backbone: str = "micro") -> Record:
    """A run with these (fraction of the budget, score), the same on both tasks."""
    rows = [
        {"share": share, "task": task, "headline": "a", "strata": ["", ""], "rows": {"a": [score, score]}}
        for share, score in points
        for task in TASKS
    ]
    cost = {"evaluations": {"training": nfe}} | ({} if backward is None else {"backward": {"training": backward}})
    return Record({"cost": cost, "seed": 0}, rows, {"backbone": backbone})


@pytest.mark.parametrize(
    ("points", "between"),
    [
        ([(0.25, 0.1), (0.5, 0.8), (1.0, 0.9)], (250, 500)),
        ([(0.25, 0.7), (0.5, 0.1), (1.0, 0.9)], (0, 250)),
        ([(0.25, 0.1), (0.5, 0.1), (1.0, 0.2)], (1000, float("inf"))),
        ([(0.0, 0.1), (1.0, 0.9)], (0, 1000)),
        ([], (0, float("inf"))),
        # Ended by an alarm halfway: what it spent was spent by its last point.
        ([(0.25, 0.1), (0.5, 0.8)], (500, 1000)),
    ],
)
def test_a_target_is_reached_between_two_recorded_points(points: list, between: tuple) -> None:
    assert reached_between(record(*points), TASKS, dict.fromkeys(TASKS, 0.6)) == between
    one_lags = {TASKS[0]: 0.6, TASKS[1]: 0.95}
    assert reached_between(record(*points), TASKS, one_lags)[1] == float("inf")


def test_a_point_has_spent_what_the_log_of_updates_says(tmp_path: Path) -> None:
    """The sixth update completes half of the budget, and the first one is dear: samples were collected before it."""
    folder, found = tmp_path / "run", record((0.5, 0.9), (1.0, 0.9))
    folder.mkdir()
    for row in found.evaluations:
        row["step"] = 6 if row["share"] == 0.5 else 11
    rows = [{"step": step, "evaluations": {"training": 500 + 50 * (step - 1), "probes": 7}} for step in range(1, 12)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "eval')
    told = Record(found.summary, with_nfe(found.evaluations, folder), found.spec)
    assert [nfe_at(told, share) for share in (0.5, 1.0)] == [750, 1000]
    assert reached_between(told, TASKS, dict.fromkeys(TASKS, 0.6)) == (0, 750)
    assert nfe_at(found, 0.5) == 500  # without the log
    assert [row["nfe"] for row in with_nfe([{"step": 0}, {"step": 6}], folder)] == [0, 750]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert with_nfe(found.evaluations, folder) == found.evaluations  # without the last update in it
    (folder / "metrics.jsonl").write_text('{"step": 6, "evaluations": {"training": "many"}}\n')
    with pytest.raises(DamagedError, match=r"metrics\.jsonl has invalid contents"):
        with_nfe(found.evaluations, folder)


def test_weighted_cost_counts_a_backward_pass_as_measured() -> None:
    cost = describe("micro").backward_cost
    # 1,000 NFE are 400 forward passes and 200 trained ones of 1 + 2.
    assert weighted([record(backward=200)] * 2) == pytest.approx(600 + 200 * cost)
    assert 1 < cost < 2
    assert weighted([record()]) is None  # of before passes were recorded
    assert weighted([record(backward=200), record()]) is None
    assert weighted([record(backward=200, backbone="hub:some/model")]) is None
    whole = record(backward=200)
    whole.spec["full_finetuning"] = True
    assert weighted([whole]) is None  # measured for an adapter


def test_the_meter_counts_backward_passes_by_purpose_and_keeps_them() -> None:
    meter = Meter()
    with meter.purpose("training"):
        meter.count(4, backward=True)
        meter.count(3, backward=False)
    state = meter.whole(ALONE)
    assert (state["evaluations"], state["backward"]) == ({"training": 15}, {"training": 4})
    assert meter.spent(ALONE).keys() == {"evaluations", "seconds"}
    resumed = Meter()
    resumed.load(json.loads(json.dumps(state)))
    assert resumed.backward == {"training": 4}
    resumed.load({"evaluations": {"training": 15}, "seconds": {}})  # a checkpoint of before
    with resumed.purpose("training"):
        resumed.count(1, backward=True)
    # The passes since then are not all of the run's.
    assert resumed.nfe["training"] == 18 and "backward" not in resumed.whole(ALONE)


def test_every_run_has_a_row_with_the_points_around_its_target(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / "results", "opd_analytic", seed, 0.9)
        make_run(tmp_path / "results", "multi_reward", seed, 0.1, teachers=False)
    (pool, *_) = pools(collect([tmp_path / "results"]))
    table = until_target(pool, "")
    assert [(row["line"], row["seed"]) for row in table.rows] == [
        (line.label, str(seed)) for line in pool.lines for seed in range(2)
    ]
    never = [row for row in table.rows if "multi_reward" in row["line"] or "Joint" in row["line"]]
    assert all(row["by"] == float("inf") and row["after"] == 1000 for row in never)
