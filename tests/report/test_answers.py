"""What the page must not get wrong: who wins, at what cost, and among whom."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from report.diff import difference
from report.evidence import collect
from report.lines import pools
from report.sections import make
from tests.report.synthetic import STRATA, TASKS, make_run


def edit(run: Path, change, name: str = "summary.json") -> None:
    content = json.loads((run / name).read_text())
    change(content)
    (run / name).write_text(json.dumps(content))


def scored(values: list[float]):
    """Sets the student's scores of every task to values, repeated."""

    def change(summary: dict) -> None:
        for row in summary["models"]["student"].values():
            row["rows"][row["headline"]] = [values[i % len(values)] for i in range(len(row["strata"]))]

    return change


def strong(root: Path) -> list[str]:
    table = next(t for t in make(collect([root])).tables if t.name == "scores")
    return [table.rows[index]["line"] for index, _ in table.strong]


def answers(*roots: Path) -> str:
    return "\n".join(make(collect(list(roots))).sections[0].markdown)


def test_no_line_is_bold_that_loses_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    """A's other seeds lift its mean above B's, whom it is below on both common ones."""
    for seed in range(6):
        edit(make_run(tmp_path, "opd_analytic", seed), scored([0.5 if seed < 2 else 1.0]))
    for seed in range(2):
        edit(make_run(tmp_path, "multi_reward", seed, teachers=False), scored([0.7]))
    text = answers(tmp_path)
    assert "Analytic OPD has the highest mean score" in text
    assert "Above: Joint RL +0.200" in text
    assert strong(tmp_path) == []
    assert "but not significantly above every other line" in text


@pytest.mark.parametrize("bad", [float("nan"), None])
def test_a_score_that_is_no_number_is_a_damaged_run(tmp_path: Path, bad) -> None:
    for seed in range(3):
        make_run(tmp_path, "opd_analytic", seed, 0.9)
        worst = make_run(tmp_path, "multi_reward", seed, 0.1)
    edit(worst, lambda summary: summary["models"]["student"]["ocr"]["rows"]["exact"].__setitem__(0, bad))
    text = answers(tmp_path)
    assert f"{worst.name}: damaged" in text
    assert "Analytic OPD has the highest mean score" in text
    assert "No finished run for seeds 2: Joint RL" in text


def test_a_run_of_another_cost_is_in_no_mean(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "sft", seed, 0.5) for seed in range(4)]
    edit(runs[0], lambda summary: summary["cost"]["evaluations"].update(training=100))
    (pool,) = pools(collect([tmp_path]))
    assert [r.summary["seed"] for r in pool.lines[0].records] == [1, 2, 3]
    assert pool.lines[0].training_nfe == 1000
    assert f"{runs[0].name} spent 100 training NFE, unlike most runs of its line, and is excluded from every mean" in answers(tmp_path)
    (row,) = [
        r for t in make(collect([tmp_path])).tables if t.name == "runs" for r in t.rows if r["run"] == runs[0].name
    ]
    assert "not counted" in row["note"]


@pytest.mark.parametrize("what", ["weights", "headline", "prompts"])
def test_what_is_measured_otherwise_never_shares_a_table(tmp_path: Path, what: str) -> None:
    for seed in range(2):
        make_run(tmp_path, "opd_analytic", seed)
        other = make_run(tmp_path, "sft", seed)
        if what == "weights":
            edit(other, lambda spec: spec.update(backbone_hash="0123456789abcdef"), "spec.json")
            continue

        def change(summary: dict) -> None:
            for models in summary["models"].values():
                row = models["ocr"]
                if what == "headline":
                    row["headline"] = "reward"
                else:
                    row["strata"] = ["a", "b"] * (len(row["strata"]) // 2)

        edit(other, change)
        (other / "evaluations.jsonl").unlink()
    found = pools(collect([tmp_path]))
    assert [[line.label for line in pool.lines] for pool in found] == [["opd_analytic"], ["sft"]]
    assert len({pool.place for pool in found}) == 2  # told apart in words
    text = answers(tmp_path)
    assert text.count("there is no other line to compare it with") == 2


def test_runs_without_a_result_are_with_those_of_their_world(tmp_path: Path) -> None:
    make_run(tmp_path, "sft", 0)
    make_run(tmp_path, "sft", 1, state="unfinished")
    (pool,) = pools(collect([tmp_path]))
    assert len(pool.unfinished) == 1


def test_tasks_in_another_order_are_the_same_world(tmp_path: Path) -> None:
    make_run(tmp_path, "sft", 0)
    edit(make_run(tmp_path, "merge", 0), lambda spec: spec["spec"]["tasks"].reverse(), "spec.json")
    (pool,) = pools(collect([tmp_path]))
    assert [line.label for line in pool.lines] == ["merge", "sft"]


def test_what_trains_nothing_is_said_to(tmp_path: Path) -> None:
    make_run(tmp_path, "sft", 0)
    make_run(tmp_path, "merge", 0, budget=0)
    assert "Merged teachers: listed for reference; it spends no training budget" in answers(tmp_path)


def test_a_highest_line_below_the_base_is_said_to_be(tmp_path: Path) -> None:
    for method in ("sft", "merge"):
        run = make_run(tmp_path, method, 0)
        edit(run, scored([0.0]))
        edit(run, lambda s: s["models"]["base"]["ocr"]["rows"].update(exact=[0.25] * len(STRATA["ocr"])))
    assert "ocr: Merged teachers, SFT on teachers' samples 0.000 [0.000, 0.000], not above the base (0.250" in answers(tmp_path)


def test_bases_that_differ_are_named(tmp_path: Path) -> None:
    make_run(tmp_path, "sft", 0)
    other = make_run(tmp_path, "merge", 0)
    edit(other, lambda s: s["models"]["base"]["ocr"]["rows"].update(exact=[1.0] * len(STRATA["ocr"])))
    assert "The base has different scores on ocr in some runs" in answers(tmp_path)


def claims(root: Path) -> dict[str, str]:
    tables = [t for t in make(collect([root])).tables if t.name == "claims"]
    return {row["claim"]: row["verdict"] for table in tables for row in table.rows}


def test_one_seed_decides_no_claim(tmp_path: Path) -> None:
    edit(make_run(tmp_path, "opd_analytic", 0), scored([1.0]))
    found = claims(tmp_path)
    assert len(found) >= len(TASKS) + 1
    assert set(found.values()) == {"undecided"}
    edit(make_run(tmp_path, "opd_analytic", 1), scored([1.0]))
    assert claims(tmp_path)["one student matches every teacher: ocr"] == "holds"


def test_claims_know_opd_by_its_method(tmp_path: Path) -> None:
    lines = []
    for seed in range(3):
        for label, method, level in (("analytic", "opd_analytic", 0.95), ("joint", "multi_reward", 0.05)):
            run = make_run(tmp_path, method, seed, level, teachers=method == "opd_analytic")
            lines.append({"label": label, "runs": [run.name], "teacher_evaluations": 5.0})
    (tmp_path / "comparison-a.json").write_text(json.dumps({"lines": lines}))
    found = claims(tmp_path)
    assert found["analytic OPD (analytic) beats joint at equal compute (teachers' cost not counted)"] == "holds"


@pytest.mark.parametrize("case", ["other points", "no points", "no gold at one", "no common point"])
def test_points_that_differ_between_seeds_are_those_that_all_have(tmp_path: Path, case: str) -> None:
    for seed in range(2):
        points = (0.5, 1.0)
        if seed and case == "other points":
            points = (0.25, 0.5, 1.0)
        if case == "no common point":
            points = (0.5,) if seed else (1.0,)
        run = make_run(tmp_path, "opd_analytic", seed, points=points)
    log = run / "evaluations.jsonl"
    if case == "no points":
        log.unlink()
    if case == "no gold at one":
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        for row in rows[:2]:
            row["rows"].pop("gold", None)
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = make(collect([tmp_path]))
    curves = [row for table in report.tables if table.name == "curves" for row in table.rows]
    shares = {row["share"] for row in curves}
    assert shares == (set() if case in ("no points", "no common point") else {0.5, 1.0})
    scores = next(table for table in report.tables if table.name == "scores")
    assert np.isfinite(scores.rows[0]["mean"].value)


def test_differences_name_what_cannot_be_compared(tmp_path: Path) -> None:
    for side, seed in (("a", 0), ("b", 1)):
        make_run(tmp_path / side, "sft", seed)
        make_run(tmp_path / side, "cascade", 0, state="failed")
    text = "\n".join(difference(collect([tmp_path / "a"]), collect([tmp_path / "b"])).sections[0].markdown)
    assert "In both sets, but without a shared seed: SFT on teachers' samples" in text
    assert text.count("failed: it broke") == 2


def test_commands_are_for_a_shell(tmp_path: Path) -> None:
    root = tmp_path / "put;$(touch x) it"
    make_run(root, "sft", 0)
    table = next(t for t in make(collect([root])).tables if t.name == "runs")
    assert f"--preset '{root}/" in table.rows[0]["command"]


def test_what_was_not_tested_is_not_called_undistinguished(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path, "opd_analytic", seed, 0.9)
    make_run(tmp_path, "sft", 0, 0.1)
    text = answers(tmp_path)
    assert "Holm-corrected over 0 comparisons" in text
    assert "Not tested (fewer than two shared seeds): SFT on teachers' samples." in text
    assert "Not distinguished" not in text.partition("Highest")[0]


def test_equal_lines_share_the_first_place(tmp_path: Path) -> None:
    for seed in (0, 1):
        for method in ("opd_analytic", "sft"):
            edit(make_run(tmp_path, method, seed), everything_right)
    text = answers(tmp_path)
    assert "Analytic OPD, SFT on teachers' samples share the highest mean score, 1.000" in text
    assert "Identical scores on every prompt: SFT on teachers' samples." in text
    assert "bit for bit" not in text  # equal scores are no proof of equal runs
    assert "ocr: Analytic OPD, SFT on teachers' samples " in text


def everything_right(summary: dict) -> None:
    for row in summary["models"]["student"].values():
        row["rows"][row["headline"]] = [1.0] * len(row["strata"])


def test_a_budget_in_seconds_keeps_its_runs(tmp_path: Path) -> None:
    for seed in range(4):
        edit(
            make_run(tmp_path, "opd_analytic", seed),
            lambda s, k=seed: s["cost"]["evaluations"].update(training=1000 + 100 * k),
        )
    (pool,) = pools(collect([tmp_path]))
    assert len(pool.lines[0].records) == 4
    assert pool.lines[0].training_nfe == 1150
    assert "its runs spent 1,000 to 1,300 training NFE" in answers(tmp_path)


def test_where_prompts_are_not_in_the_records_it_is_said(tmp_path: Path) -> None:
    def forget(summary: dict) -> None:
        for rows in summary["models"].values():
            for row in rows.values():
                del row["prompts"]

    runs = [make_run(tmp_path, "opd_analytic", seed, 0.9) for seed in range(2)]
    assert "show one prompt" not in answers(tmp_path)
    for run in runs:
        edit(run, forget)
        points = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().split("\n")[:-1]]
        lines = [json.dumps({key: value for key, value in point.items() if key != "prompts"}) for point in points]
        (run / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    assert "Some records of geneval, ocr do not say which images share a prompt" in answers(
        tmp_path
    )


def test_prompts_that_differ_or_are_no_numbers_are_damage(tmp_path: Path) -> None:
    for name, spoil in (
        ("other", lambda s: s["models"]["base"]["ocr"].update(prompts=list(range(8)))),
        ("short", lambda s: s["models"]["student"]["ocr"].update(prompts=[0])),
        ("words", lambda s: s["models"]["student"]["ocr"].update(prompts=["a"] * 8)),
    ):
        edit(make_run(tmp_path / name, "opd_analytic", 0), spoil)
        assert "damaged" in answers(tmp_path / name), name


def near_to(other: dict, away: float):
    """Sets the student's scores to another's, moved a little."""

    def change(summary: dict) -> None:
        for task, row in summary["models"]["student"].items():
            theirs = other["models"]["student"][task]["rows"][row["headline"]]
            row["rows"][row["headline"]] = [value + away for value in theirs]

    return change


def test_the_papers_comparisons_are_named_and_equivalence_is_said_at_its_margin(tmp_path: Path) -> None:
    for seed in range(5):
        make_run(tmp_path, "opd_analytic", seed, 0.9)
        edit(make_run(tmp_path, "multi_reward", seed, teachers=False), scored([0.1 + 0.01 * seed]))
        twin = make_run(tmp_path, "sft", seed, 0.9)
        (mine,) = tmp_path.glob(f"opd_analytic-*-s{seed}")
        edit(twin, near_to(json.loads((mine / "summary.json").read_text()), 0.001 * (seed - 2)))
    text = answers(tmp_path)
    assert "1 comparison of the primary family (the paper's: joint RL, cascade and PPO-style OPD, each with its recipe)" in text
    assert re.search(r"Below: Joint RL -0\.\d+ \[.*?\] \(p .*?, primary\)", text)
    assert re.search(r"Equivalent within plus or minus 0\.\d+, a tenth of the teachers' mean gain.*: SFT on teachers' samples\.", text)
    table = next(t for t in make(collect([tmp_path])).tables if t.name == "scores")
    assert {row.get("family") for row in table.rows[:3]} == {"primary", "exploratory", None}
    ours = next(row for row in table.rows if row["line"] == "Analytic OPD")
    assert ours["geneval: strict"].value <= ours["geneval"].value


@pytest.mark.parametrize("cell", ["=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\tx", "\rx"])
def test_no_spreadsheet_computes_a_cell(cell: str) -> None:
    from report.page import _no_formula

    assert _no_formula(cell) == f"'{cell}"
    assert [_no_formula(plain) for plain in ("-", "opd", -1.5, None)] == ["-", "opd", -1.5, None]
