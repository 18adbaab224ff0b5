"""One cell of part 2: python results/reference/study/part2/cell.py CELL --seed SEED trains its teachers and its lines.

Prints the `bench` commands that it runs, in results/study/part2/cell-CELL by default; with --dry-run it only prints
them. Started again, it resumes. Two runs are made at a time, with one thread each.
"""

import argparse
import csv
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

HERE = Path(__file__).parent
BUDGET = 73_728
"""Training NFE of a student with the full budget: 48 updates of a teacher, and every budget of the design a whole
number of them."""
TUNED = HERE / "tuned.yaml"
"""LoRA rank -> multi_reward, rule or opd_analytic -> the settings that were chosen for it."""
WORKERS = 2


def cells() -> list[dict[str, str]]:
    """The design's cells, by their number."""
    with (HERE / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def student_nfe(cell: dict[str, str]) -> int:
    """Training NFE of a student of the cell."""
    return round(BUDGET * float(cell["budget"]))


def teacher_nfe(cell: dict[str, str]) -> int:
    """Training NFE of one teacher: that of a student, times the share of a teacher's updates."""
    return round(student_nfe(cell) * float(cell["teachers"]))


def teach(cell: dict[str, str], seed: int, results: Path) -> list[str]:
    """The command that trains the cell's teachers."""
    words = ["bench", "teach", "--executor", "local", *_place(cell, seed, results)]
    return [*words, *_set({"budget.nfe": teacher_nfe(cell)}), *_set(_tastes(cell))]


def lines(cell: dict[str, str], seed: int, results: Path, teachers: str) -> dict[str, list[str]]:
    """Line -> the command that trains its student, the longest first."""
    tuned = yaml.safe_load(TUNED.read_text())[int(cell["rank"])]
    nfe = student_nfe(cell)
    with_teachers = nfe + int(cell["tasks"]) * teacher_nfe(cell)
    taught = {f"teachers.{task}": f"{teachers}/{task}" for task in tasks(cell)}
    made = {
        "joint_long": ("multi_reward", {"budget.nfe": with_teachers, **tuned["multi_reward"]}),
        "rule": ("multi_reward", {"budget.nfe": nfe, **tuned["rule"]}),
        "joint": ("multi_reward", {"budget.nfe": nfe, **tuned["multi_reward"]}),
        "opd": ("opd_analytic", {"budget.nfe": nfe, **tuned["opd_analytic"], **taught}),
        "soup": ("merge", taught),
    }
    return {
        line: ["bench", "run", "--method", method, *_place(cell, seed, results), *_set(settings), *_set(_tastes(cell))]
        for line, (method, settings) in made.items()
    }


def tasks(cell: dict[str, str]) -> list[str]:
    """The cell's tasks."""
    return [f"taste_{number}" for number in range(1, int(cell["tasks"]) + 1)]


def _place(cell: dict[str, str], seed: int, results: Path) -> list[str]:
    where = ["--backbone", f"study-{cell['world']}", "--seeds", str(seed), "--results", str(results)]
    return ["--tasks", ",".join(tasks(cell)), *where]


def _tastes(cell: dict[str, str]) -> dict[str, str]:
    """The settings of the cell's tasks: their prompts in common, and the angle within each pair."""
    found = {"evaluation.points": "[1.0]"}
    for number, task in enumerate(tasks(cell), 1):
        found |= {f"scorers.{task}.overlap": cell["overlap"], f"scorers.{task}.among": cell["tasks"]}
        if number % 2 == 0:
            found[f"scorers.{task}.angle"] = cell["angle"]
    return found


def _set(settings: dict[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def main() -> int:
    """Run the cell's commands; returns the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cell", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results/study/part2"))
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    cell, root = cells()[given.cell], given.results / f"cell-{given.cell:02}"

    def call(words: list[str]) -> int:
        print(shlex.join(words), flush=True)
        if given.dry_run:
            return 0
        return subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL).returncode

    if call(teach(cell, given.seed, root)):
        return 1
    sets = sorted(map(str, root.glob(f"teachers-*-s{given.seed}"))) or ["TEACHERS"]
    if len(sets) > 1:
        print(f"{root} has several sets of teachers of seed {given.seed}: move all but the cell's own", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(WORKERS) as pool:
        return sum(code != 0 for code in pool.map(call, lines(cell, given.seed, root, sets[0]).values()))


if __name__ == "__main__":
    sys.exit(main())
