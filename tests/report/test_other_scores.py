"""What tasks report beside their headlines, and measures at the guidance scale of points along training."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.analysis.stats import Design, estimate, joined, paired_difference
from report.evidence import collect
from report.lines import Pool, pools, titled
from report.measures import measures_tables
from report.other_scores import other_scores_table
from report.tables import pool_tables, references
from tests.report.synthetic import HEADLINES, TASKS, make_run, measures

SEEDS = 3
RAISED = 0.4
"""What joint RL's reward on ocr is raised by, without its headline."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Joint RL's ocr is gamed; "edit" repeats the reward, "exact" has a part; models have other measures along training."""
    root = tmp_path_factory.mktemp("other") / "results"
    for seed in range(SEEDS):
        for method, level in {"multi_reward": 0.4, "opd_analytic": 0.6}.items():
            path = make_run(root, method, seed, level) / "summary.json"
            summary = json.loads(path.read_text())
            summary["along"] = json.loads(json.dumps(summary["models"]))
            for of_model in summary["along"].values():
                for task, row in of_model.items():
                    row["rows"] |= measures(task, 1 - np.array(row["rows"][HEADLINES[task]]))
            if method == "multi_reward":
                rows = summary["models"]["student"]["ocr"]["rows"]
                rows["reward"] = [value + RAISED for value in rows["reward"]]
            for of_model in summary["models"].values():
                rows = of_model["ocr"]["rows"]
                rows |= {"edit": rows["reward"], "exact.start": rows["reward"]}
            path.write_text(json.dumps(summary))
    return root


@pytest.fixture(scope="module")
def pool(root: Path) -> Pool:
    (pool, *_) = map(titled, pools(collect([root])))
    return pool


def rows_of(root: Path, method: str, task: str, metric: str, model: str = "student", among: str = "models"):
    """Values [S, N] and their design, read without the report."""
    found = [json.loads(path.read_text())[among][model][task] for path in sorted(root.glob(f"{method}-*/summary.json"))]
    values = np.array([row["rows"][metric] for row in found], np.float64)
    return values, Design(np.array(found[0]["strata"]), np.array(found[0]["prompts"]))


def test_scores_are_those_of_the_records_and_differences_are_paired(root: Path, pool: Pool) -> None:
    table = other_scores_table(pool, references(pool), "2-")
    assert table is not None and table.name == "2-other-scores"
    found = {(row["task"], row["metric"], row["line"]): row for row in table.rows}
    labels = {line.method: line.label for line in pool.lines}
    for task, metric in (("geneval", "reward"), ("geneval", "strict"), ("ocr", "reward")):
        own, design = rows_of(root, "opd_analytic", task, metric)
        rival, _ = rows_of(root, "multi_reward", task, metric)
        assert found[task, metric, labels["opd_analytic"]]["score"] == estimate(own, design)
        assert "against" not in found[task, metric, labels["opd_analytic"]]
        row = found[task, metric, labels["multi_reward"]]
        expected = paired_difference(rival - own, np.zeros(own.shape[1]), design)
        assert row["score"] == estimate(rival, design) and row["against"].value == pytest.approx(expected.value)
        assert (row["against"].low, row["against"].high) == pytest.approx((expected.low, expected.high))
        base, design = rows_of(root, "opd_analytic", task, metric, "base")
        assert found[task, metric, "base at its best guidance"]["score"].value == estimate(base[:1], design).value


def test_a_gamed_reward_has_another_order_than_the_headline(root: Path, pool: Pool) -> None:
    """The case the table is for: joint RL is below by the headline and above by the reward."""
    table = other_scores_table(pool, references(pool), "")
    assert table is not None
    (row,) = (r for r in table.rows if r["task"] == "ocr" and r["metric"] == "reward" and "against" in r)
    headlines = [rows_of(root, method, "ocr", "exact")[0].mean() for method in ("multi_reward", "opd_analytic")]
    assert headlines[0] < headlines[1] and row["against"].value > 0.1
    assert row["against"].value == pytest.approx((headlines[0] - headlines[1]) / 2 + RAISED)


def test_headlines_repeats_and_parts_are_left_out_and_the_mean_is_the_rewards(root: Path, pool: Pool) -> None:
    table = other_scores_table(pool, references(pool), "")
    assert table is not None
    listed = list(dict.fromkeys((row["task"], row["metric"]) for row in table.rows))
    assert listed == [("geneval", "reward"), ("geneval", "strict"), ("ocr", "reward"), ("mean", "reward")]
    (line,) = (line for line in pool.lines if line.method == "multi_reward")
    (mean,) = (row for row in table.rows if row["task"] == "mean" and row["line"] == line.label)
    by_task = {task: rows_of(root, "multi_reward", task, "reward") for task in TASKS}
    assert mean["score"] == estimate(*joined(by_task))


def test_measures_have_a_table_for_the_guidance_of_points_along_training(root: Path, pool: Pool) -> None:
    own, along = measures_tables(pool, pool_tables(pool, "").standings, references(pool), "")
    assert (own.name, along.name) == ("diversity", "diversity-along") and "at guidance 1:" in along.title
    (line,) = (line for line in pool.lines if line.method == "opd_analytic")
    for table, among in ((own, "models"), (along, "along")):
        (row,) = (row for row in table.rows if row["line"] == line.label and row["task"] == "ocr")
        assert row["entropy.ground"] == estimate(*rows_of(root, "opd_analytic", "ocr", "entropy.ground", among=among))
    assert [r for r in own.rows if r["line"] == line.label] != [r for r in along.rows if r["line"] == line.label]
    # At a scale that is not its own, the base is not at its best one.
    assert {row["line"] for row in own.rows} - {row["line"] for row in along.rows} == {"base at its best guidance"}
    assert "base" in {row["line"] for row in along.rows}
