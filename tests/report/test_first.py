"""The first screen: its sentences and pictures say what the tables say."""

import json
import re
from pathlib import Path

import pytest

from bench.analysis.stats import Difference, Estimate
from report.cost_front import Spent, front, spent
from report.evidence import collect
from report.forest import FEW, groups
from report.highlights import FEW as COLOURED
from report.highlights import highlight, looks_of
from report.lines import pools, titled
from report.sections import make
from report.style import GREY, MOST, PLAIN
from report.tables import pool_tables
from tests.report.synthetic import make_run


def first(folder: Path) -> str:
    return "\n".join(make(collect([folder])).sections[0].markdown).split("### In words")[0]


def built(folder: Path):
    found = [titled(pool) for pool in pools(collect([folder]))]
    made = [(pool, pool_tables(pool, f"{k}-")) for k, pool in enumerate(found)]
    highlight(made)
    return made


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """OPD, joint RL and a cascade at one budget, RL at OPD's whole cost, and OPD's settings at a quarter."""
    for seed in range(4):
        make_run(tmp_path, "opd_analytic", seed, 0.9)
        for method, level in (("multi_reward", 0.2), ("cascade", 0.4)):
            make_run(tmp_path, method, seed, level, teachers=False)
            make_run(tmp_path, method, seed, level + 0.1, budget=2000, teachers=False)
        for k in range(12):
            make_run(tmp_path, "sft", seed, 0.5, settings={"size": k})
    return tmp_path


def test_every_budget_has_a_sentence_whose_counts_are_those_of_the_tables(records: Path) -> None:
    text = first(records)
    assert text.count("has the highest mean score") == 3
    assert re.search(r"At 1,000 NFE per run of training \(4 seeds\), Analytic OPD has the highest mean score, 0\.\d+", text)
    assert re.search(r"At 2,000 NFE per run including the teachers' training", text)
    assert re.search(r"Joint RL (is|has|was) [a-z ]*Cascade RL\.|Joint RL is neither", text)
    report = make(collect([records]))
    tables = {table.name: table for table in report.tables}
    for row, name in zip(tables["key-results"].rows, ("scores", "2-scores", "3-scores")):
        scores = [r for r in tables[name].rows if isinstance(r.get("against"), Difference)]
        counts = [row[kind] for kind in ("above", "below", "equal", "undecided", "same", "untested")]
        assert sum(counts) == row["others"] == len(scores)
        assert row["below"] == sum(r["p"] < 0.05 and r["against"].value < 0 for r in scores)
        assert f"{row['mean'].value:.3f}" in text


def test_the_forest_has_the_papers_comparisons_and_what_only_a_whole_budget_adds(records: Path) -> None:
    made = built(records)
    found = groups(made)
    assert [len(group.lines) for group in found] == [FEW, 1, 2]
    assert {"Joint RL", "Cascade RL"} <= found[0].lines.keys() and found[0].left_out == 14 - FEW
    assert set(found[2].lines) == {"Joint RL at 2,000", "Cascade RL at 2,000"}
    gaps = [gap.value for gap in found[0].lines.values()]
    assert gaps == sorted(gaps, reverse=True)
    rows = {row["line"]: row for row in made[0][1].scores.rows}
    assert all(gap is rows[line]["against"] for line, gap in found[0].lines.items())


def test_few_lines_are_in_colour_and_one_line_has_one_colour(records: Path) -> None:
    made = built(records)
    looks = [looks_of(pool, tables, pool.lines) for pool, tables in made]
    for look in looks:
        coloured = [label for label, style in look.items() if style.matters]
        assert len(coloured) == min(COLOURED, len(look))
        assert all((style.colour == GREY) != style.matters for style in look.values())
    assert {"Analytic OPD", "Joint RL", "Cascade RL"} == {label for label, s in looks[0].items() if s.matters}
    assert looks[0]["Joint RL"].colour == looks[1]["Joint RL"].colour == looks[2]["Joint RL at 2,000"].colour
    assert len({looks[0][name].colour for name in ("Analytic OPD", "Joint RL", "Cascade RL")}) == 3


def test_the_front_counts_the_teachers(records: Path) -> None:
    def point(name: str, training: float, whole: float, mean: float) -> Spent:
        return Spent(name, name, training, whole, Estimate(mean, mean, mean), PLAIN)

    points = [point("a", 10, 10, 0.5), point("b", 10, 50, 0.9), point("c", 40, 40, 0.7), point("d", 45, 45, 0.6)]
    points += [point("unknown", 5, float("nan"), 1.0), point("e", 60, 60, 0.9)]
    assert [p.name for p in front(points)] == ["a", "c", "b"]


def test_what_rose_while_another_measure_fell_is_on_the_first_screen(tmp_path: Path) -> None:
    """The reward of ocr rises from 0 to 1 between two points, and its known utility falls from 1 to 0."""
    for seed in range(3):
        run = make_run(tmp_path, "multi_reward", seed, 0.5)
        rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
        for row in rows:
            if row["task"] == "ocr":
                late, count = float(row["share"] == 1.0), len(row["strata"])
                row["rows"]["reward"] = [late - 0.001 * k * seed for k in range(count)]
                row["rows"]["gold"] = [1 - late + 0.001 * k * seed for k in range(count)]
        (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        make_run(tmp_path, "sft", seed, 0.5)
    text = first(tmp_path)
    assert "At 1,000 NFE the reward rose while a stricter score, the known utility or the diversity fell, on ocr: Joint RL." in text
    tables = {table.name: table for table in make(collect([tmp_path])).tables}
    (row,) = tables["alarms"].rows
    assert (row["line"], row["task"], row["measure"], row["since"]) == ("Joint RL", "ocr", "gold", 0.5)
    assert row["rise"].value == pytest.approx(1, abs=0.01) and row["fall"].value == pytest.approx(-1, abs=0.01)


def test_without_lines_to_compare_there_is_no_picture(tmp_path: Path) -> None:
    make_run(tmp_path, "sft", 0)
    names = [figure.name for figure in make(collect([tmp_path])).figures]
    assert "differences" not in names and "cost-front" not in names


def test_a_place_without_anything_to_say_has_no_heading(tmp_path: Path) -> None:
    """A teacher's run, scored on other prompts than the students'."""
    for method in ("opd_analytic", "multi_reward"):
        for seed in range(2):
            make_run(tmp_path, method, seed, 0.5)
    path = make_run(tmp_path, "single_task", 0, 0.5, teachers=False, points=(1.0,)) / "spec.json"
    path.write_text(path.read_text().replace('"split": "test"', '"split": "validation"'))
    text = first(tmp_path)
    assert text.count("### On micro") == 1 and "validation prompts" not in text
    words = "\n".join(make(collect([tmp_path])).sections[0].markdown).split("### In words")[1]
    assert words.count("### On micro") == 2 and "validation prompts" in words


def test_what_is_forgotten_is_said_with_its_budget_and_not_otherwise(tmp_path: Path) -> None:
    def level(run: Path, early: float, late: float) -> None:
        rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
        for row in rows:
            row["rows"][row["headline"]] = [late if row["share"] == 1.0 else early] * len(row["strata"])
        (run / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    for seed in range(3):
        for method in ("opd_analytic", "sft"):
            level(make_run(tmp_path / "rise", method, seed, 0.5), 0.2, 0.8 + 0.01 * seed)
    text = first(tmp_path / "rise")
    assert "No line ends distinguishably below its best earlier points; forgetting is largest for" in text
    for seed in range(3):
        for method in ("opd_analytic", "sft"):
            level(make_run(tmp_path / "fall", method, seed, 0.5), 0.2, 0.8)
        # At another budget than the first.
        level(make_run(tmp_path / "fall", "cascade", seed, 0.5, budget=5000, teachers=False), 0.9 + 0.01 * seed, 0.3)
    assert re.search(r"Most is forgotten by Cascade RL at 5,000 NFE: it ends \+0\.6\d\d", first(tmp_path / "fall"))


def test_the_cheapest_line_is_on_the_front_however_many_are_better(tmp_path: Path) -> None:
    for k in range(MOST + 3):
        make_run(tmp_path, "sft", 0, 0.9, settings={"size": k})
    make_run(tmp_path, "merge", 0, 0.1, teachers=False)
    points = spent(built(tmp_path))
    assert len(points) == MOST + 4 and front(points)[0].name == "Merged teachers"
    figure = next(figure for figure in make(collect([tmp_path])).figures if figure.name == "cost-front")
    assert "4 further lines are not drawn." in figure.title and "Merged teachers" in figure.alt


def test_lines_with_other_settings_are_not_one_line(tmp_path: Path) -> None:
    """At each budget the only line of its method, so that their titles do not tell them apart."""
    make_run(tmp_path, "opd_analytic", 0, 0.5)
    make_run(tmp_path, "sft", 0, 0.5)
    make_run(tmp_path, "sft", 0, 0.6, settings={"size": 7}, budget=4000)
    points = [point for point in spent(built(tmp_path)) if point.name.startswith("SFT")]
    assert [point.name for point in points] == ["SFT on teachers' samples", "SFT on teachers' samples at 4,000"]
    assert points[0].settings != points[1].settings and points[0].look.colour != points[1].look.colour


def test_without_costs_there_is_no_cost_figure_and_ties_are_named(tmp_path: Path) -> None:
    for method in ("merge", "sft"):
        run = make_run(tmp_path, method, 0, 0.5, budget=0, teachers=False)
        summary = json.loads((run / "summary.json").read_text())
        for row in summary["models"]["student"].values():
            row["rows"][row["headline"]] = [1.0] * len(row["strata"])
        (run / "summary.json").write_text(json.dumps(summary))
    report = make(collect([tmp_path]))
    assert "cost-front" not in [figure.name for figure in report.figures]
    text = "\n".join(report.sections[0].markdown)
    assert "Without training (1 seed), Merged teachers, SFT on teachers' samples share the highest mean score" in text


def only(folder: Path, task: str) -> None:
    """Make a run one of a single task."""
    for name, keys in (("spec.json", ["spec"]), ("summary.json", [])):
        content = json.loads((folder / name).read_text())
        if keys:
            content["spec"]["tasks"] = [task]
        else:
            content["models"] = {model: {task: of[task]} for model, of in content["models"].items()}
        (folder / name).write_text(json.dumps(content))
    rows = [line for line in (folder / "evaluations.jsonl").read_text().splitlines() if json.loads(line)["task"] == task]
    (folder / "evaluations.jsonl").write_text("".join(f"{row}\n" for row in rows))


@pytest.mark.parametrize("rival", [True, False])
def test_a_teacher_s_own_budget_does_not_hide_what_is_compared_at_another(tmp_path: Path, rival: bool) -> None:
    """Teachers of ocr alone, beside longer runs of ocr that are compared, or beside nothing."""
    for seed in range(2):
        make_run(tmp_path, "opd_analytic", seed, 0.9)
        only(make_run(tmp_path, "single_task", seed, 0.8, teachers=False), "ocr")
        for method in ("single_task", "multi_reward") if rival else ():
            only(make_run(tmp_path, method, seed, 0.7, budget=5000, teachers=False), "ocr")
    said = first(tmp_path)
    parts = said.split("### On micro")[1:]
    alone = [part for part in parts if "; geneval, ocr; " not in part]
    assert len(parts) == len(alone) + 1
    assert ["; ocr; " in part and "At 5,000 NFE" in part and "At 1,000 NFE" not in part for part in alone] == [True] * rival
