"""Outcomes of part 2's runs: python results/reference/study/part2/outcomes.py results/study/part2 writes outcomes.csv.

One row per cell, seed and line, one for the base, and one for the cell's teachers, each on its own task. `nfe` is
what was spent on training, by all teachers together in their row. Of scores: the response `pair` (the lower score of
each pair of tasks, averaged over pairs), the lowest and the mean; `extremity`, the mean distance of an image's score
from 1/2, which is small where opposed rewards are met by a compromise and large where they are met by images of
either kind; of measures (bench/training/measures.py) the means over tasks. Cells of which a line has not finished are
left out and named.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cell import NEEDS_TEACHERS, cells, long_nfe, pairs, place, seeds, student_nfe, tasks

from bench.analysis.metric_names import DIVERSITY, DRIFT
from bench.errors import MissingError, UsageError, exit_on_error
from bench.results import Result, results, scores
from bench.system.files import write_atomic

HERE = Path(__file__).parent
BASE, TEACHERS = "base", "teachers"
COLUMNS = ["cell", "seed", "line", "nfe", "pair", "lowest", "mean", "extremity", "diversity", "drift"]
LINES = ("joint_long", "rule", "joint", "opd", "soup")
SHARED = "shared"
FAILED = HERE / "failed.csv"
"""Lines that ended in an error that their settings cause (cell, seed, line, error): they get the base's row."""


def line_of(run: Result, cell: dict[str, str]) -> str | None:
    """The line of a run of a cell, by its settings; None for a teacher. Raises UsageError for a run of no line."""
    spec = run.spec
    if spec["method"] in ("single_task", "opd_analytic", "merge"):
        return {"single_task": None, "opd_analytic": "opd", "merge": "soup"}[spec["method"]]
    if spec.get("rewards"):
        return SHARED
    if spec["params"].get("combine", "sum") != "sum":
        return "rule"
    nfe = spec["budget"]["nfe"]
    for line, budget in (("joint", student_nfe(cell)), ("joint_long", long_nfe(cell))):
        if nfe == budget:
            return line
    raise UsageError(
        f"{run.folder.name} of cell {cell['cell']} has a budget of {nfe} NFE, which no line of the cell has"
    )


def lines_of(cell: dict[str, str]) -> set[str]:
    """The lines that the cell has."""
    return {*LINES, *([SHARED] if cell["overlap"] == "all" else [])}


def outcomes(root: Path, failed: Sequence[tuple[int, int, str]] = ()) -> tuple[pd.DataFrame, list[str]]:
    """(the table, a message for every cell and seed that is left out). Raises UsageError for two runs of one line."""
    rows: list[dict[str, Any]] = []
    lacking: list[str] = []
    for cell in cells():
        found, absent = of_cell(cell, place(root, cell), failed)
        rows += found
        lacking += absent
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(["cell", "seed", "line"], ignore_index=True), lacking


def of_cell(
    cell: dict[str, str], folder: Path, failed: Sequence[tuple[int, int, str]] = ()
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one cell, whose runs are in `folder`, and a message for each of its seeds that is left out."""
    number = int(cell["cell"])
    made: dict[int, dict[str, dict[str, Any]]] = {seed: {} for seed in seeds(cell)}
    for run in results(folder) if folder.is_dir() else []:
        line, of_seed = line_of(run, cell), made[run.spec["seed"]]
        if run.summary is None or line is None:
            continue
        if line in of_seed:
            raise UsageError(f"cell {number} has two runs of {line} with seed {run.spec['seed']}: move one away")
        of_seed |= {**_rows(run, line, cell), **of_seed}
    rows: list[dict[str, Any]] = []
    lacking = []
    for seed, of_seed in made.items():
        lost = {line for *at, line in failed if at == [number, seed]}
        # Both lines that need teachers fail only with a teacher.
        lost |= {TEACHERS} if lost.issuperset(NEEDS_TEACHERS) else set()
        for line in lost if BASE in of_seed else ():
            of_seed[line] = of_seed[BASE] | {"line": line}
        absent = sorted({*lines_of(cell), BASE, TEACHERS} - of_seed.keys())
        if absent:
            lacking.append(f"cell {number}, seed {seed}: no {', '.join(absent)}")
        else:
            rows += of_seed.values()
    return rows, lacking


def failures() -> list[tuple[int, int, str]]:
    """Cell, seed and line of every line that ended in an error that its settings cause."""
    if not FAILED.is_file():
        return []
    return list(pd.read_csv(FAILED)[["cell", "seed", "line"]].itertuples(index=False, name=None))


def _rows(run: Result, line: str, cell: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Line -> row, of what one run gives: its student, the base, and the teachers of a line that has them."""
    found = scores([run])
    own = {line: found[found["model"] == "student"], BASE: found[found["model"] == BASE]}
    if line in NEEDS_TEACHERS:
        own[TEACHERS] = found[found["model"] == "teacher " + found["task"]]
    rows = {}
    for name, of_model in own.items():
        score = of_model[of_model["headline"]].set_index("task")["value"][tasks(cell)]
        means = of_model.groupby("metric")["value"].mean()
        diversity = means[[metric.startswith(f"{DIVERSITY}@") for metric in means.index]].mean()
        drift = 0.0 if name == BASE else means.get(DRIFT, float("nan"))
        spent = {
            line: run.summary["cost"]["evaluations"].get("training", 0),
            TEACHERS: int(sum(teacher["evaluations"] for teacher in run.summary["teachers"].values())),
        }.get(name, 0)
        pair = sum(min(score[one], score[other]) for one, other in pairs(cell)) / len(pairs(cell))
        model = {line: "student", BASE: BASE}.get(name)
        extremity = np.mean(
            [_extremity(run.summary["models"][model or f"teacher {task}"][task]) for task in tasks(cell)]
        )
        where = (int(cell["cell"]), run.spec["seed"], name, spent)
        rows[name] = dict(zip(COLUMNS, (*where, pair, score.min(), score.mean(), extremity, diversity, drift)))
    return rows


def _extremity(found: dict[str, Any]) -> float:
    """Mean distance from 1/2 of the scores of a model's images on a task."""
    return float(np.abs(np.array(found["rows"][found["headline"]]) - 0.5).mean())


def main() -> None:
    """Write the table, and name what is left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="the folder with a folder for each cell")
    given = parser.parse_args()
    if not given.root.is_dir():
        raise MissingError(f"{given.root} is not a folder: part2/cell.py writes one for each cell in it")
    table, lacking = outcomes(given.root, failures())
    write_atomic(HERE / "outcomes.csv", table.round(6).to_csv(index=False).encode())
    print("\n".join(lacking))


if __name__ == "__main__":
    exit_on_error(main)
