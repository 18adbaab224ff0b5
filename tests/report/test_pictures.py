"""Picture grids: which rows are chosen, which lines are shown, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from report.evidence import collect
from report.lines import pools
from report.page import write
from report.pictures import LINES, grids
from report.sections import make
from report.table import slugs
from tests.report.synthetic import TASKS, make_run, paint


def found(root: Path) -> tuple[dict, list[str]]:
    """Task -> (table, grid), and what was wrong."""
    problems: list[str] = []
    (pool,) = pools(collect([root]))
    return dict(zip(TASKS, grids(pool, "", problems))), problems


def change(run: Path, edit) -> None:
    summary = json.loads((run / "summary.json").read_text())
    edit(summary)
    (run / "summary.json").write_text(json.dumps(summary))


def test_worst_rows_are_the_ones_furthest_below_the_teacher(tmp_path: Path) -> None:
    root = tmp_path / "results"
    for seed in range(2):
        run = make_run(root, "sft", seed, 0.5, pictures=True)

        def scores(summary: dict, seed: int = seed) -> None:
            summary["models"]["teacher ocr"]["ocr"]["rows"]["exact"] = [1.0] * 7 + [0.0]
            # Worst in seed 0: rows 3 and 5, of which row 5 is below in seed 1 too.
            row = [1.0] * 8
            row[5] = 0.0
            row[3] = float(seed)
            summary["models"]["student"]["ocr"]["rows"]["exact"] = row

        change(run, scores)
    (tables, problems) = found(root)
    table, grid = tables["ocr"]
    assert problems == []
    assert [(row["index"], row["why"]) for row in table.rows] == [
        (0, "by number"), (2, "by number"), (4, "by number"), (6, "by number"), (5, "worst of sft"),
        (7, "best of sft"),
    ]  # fmt: skip
    assert [column.label for column in grid.columns] == ["base", "teacher ocr", "sft"]
    assert [(row["score_1"], row["score_2"]) for row in table.rows[-2:]] == [(1.0, 0.0), (0.0, 1.0)]
    assert {row["prompt"].split()[1] for row in table.rows} == {"0", "2", "4", "5", "6", "7"}


def test_the_best_lines_are_shown(tmp_path: Path) -> None:
    root = tmp_path / "results"
    for k in range(LINES + 2):
        make_run(root, "sft", 0, 0.1 * k, settings={"k": k}, pictures=True)
    table, grid = found(root)[0]["geneval"]
    pool = pools(collect([root]))[0]
    # 6 prompts of one template and 4 of another: the mean over templates, as in the tables.
    rows = {
        line.label: line.records[0].summary["models"]["student"]["geneval"]["rows"]["official"] for line in pool.lines
    }
    mean = {label: np.mean([np.mean(values[:6]), np.mean(values[6:])]) for label, values in rows.items()}
    best = sorted(pool.lines, key=lambda line: -mean[line.label])[:LINES]
    assert best != sorted(pool.lines, key=lambda line: -np.mean(rows[line.label]))[:LINES]
    assert [column.label for column in grid.columns[2:]] == [line.label for line in best]
    assert len(table.columns) == 3 + 2 + LINES


@pytest.mark.parametrize("place", ["../outside", "/etc", "sft/../../outside"])
def test_pictures_outside_the_results_folder_are_refused(tmp_path: Path, place: str) -> None:
    run = make_run(tmp_path / "results", "sft", 0, pictures=True)
    for task in TASKS:
        paint(tmp_path / "outside", task, "", 0)
    change(run, lambda summary: summary["pictures"]["student"].update(geneval=place, ocr=place))
    tables, problems = found(tmp_path / "results")
    assert not tables
    assert len(problems) == 2
    assert all("outside the results folder" in problem for problem in problems)


def test_links_out_of_the_results_folder_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "results", "sft", 0, pictures=True)
    paint(tmp_path / "outside", "ocr", "", 0)
    sample = next((run / "student" / "ocr").glob("00003/samples/*.png"))
    sample.unlink()
    sample.symlink_to(next((tmp_path / "outside").glob("00003/samples/*.png")).resolve())
    tables, problems = found(tmp_path / "results")
    assert [column.label for column in tables["geneval"][1].columns] == ["base", "teacher geneval", "sft"]
    assert any("has links that lead out of the results folder" in problem for problem in problems)


def test_what_cannot_be_shown_is_said_on_the_page(tmp_path: Path) -> None:
    root = tmp_path / "results"
    good = make_run(root, "opd_analytic", 0, 0.9, pictures=True)
    other = make_run(root, "sft", 0, 0.1, prompt="other", pictures=True)
    short = make_run(root, "merge", 0, 0.1, pictures=True, name="merge-short-s0")
    broken = make_run(root, "cascade", 0, 0.1, pictures=True, name="cascade-gone-s0")
    (next(short.glob("student/ocr/00003/samples/*.png"))).unlink()
    for sample in broken.glob("student/*/*/samples/*.png"):
        sample.write_bytes(b"no picture")
    page = write(make(collect([root])), tmp_path / "report")
    text = page.read_text()
    assert f"images of {other.name}: they show other prompts than those of the first line" in text
    assert "images of merge-short-s0: 7 images of student for 8 scores" in text
    assert re.search(r"cascade-gone-s0/student/ocr/\S+png is not a readable image", text)
    assert "no image<br>" in text
    assert good.name in text
    assert "data:image/png" in text


def test_without_pictures_the_page_says_how_to_keep_them(tmp_path: Path) -> None:
    make_run(tmp_path / "results", "sft", 0)
    text = write(make(collect([tmp_path / "results"])), tmp_path / "report").read_text()
    assert "--set evaluation.pictures=true" in text


def test_names_that_differ_in_signs_are_different_files() -> None:
    assert slugs(["a b", "a-b", "A.b", "a-b-2", "../..", ""]) == [
        "a-b",
        "a-b-2",
        "A-b-3",
        "a-b-2-2",
        "unnamed",
        "unnamed-2",
    ]
