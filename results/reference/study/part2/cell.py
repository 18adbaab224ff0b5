"""One cell of part 2: python results/reference/study/part2/cell.py CELL trains its teachers and its lines.

A cell has two seeds that no other cell has; --seed is for one of them. Prints the `bench` commands that it runs, in
results/study/part2/cell-CELL by default; with --dry-run it only prints them. Started again, it resumes. As many runs
are made at a time as there are cores, with one thread each.
"""

import argparse
import csv
import json
import math
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bench.errors import MissingError, UsageError, exit_on_error
from tasks.taste import PLANES

HERE = Path(__file__).parent
BUDGET = 73_728
"""Training NFE of a student with the full budget: 48 updates of a teacher, and every budget of the design a whole
number of them."""
TUNED = HERE / "tuned.yaml"
"""LoRA rank -> budget, as a share of BUDGET -> line -> the settings that were chosen for it in the central cell."""
CENTRAL_TASKS = 4
"""Number of tasks of the central cell."""
SCORED = 6
"""Number of tastes whose shapes the common prompts have in every cell, whatever its tasks."""
ONE_POINT = {"evaluation.points": "[1.0]"}
NEEDS_TEACHERS = ("opd", "soup")
INTERRUPTED = 130


def cells() -> list[dict[str, str]]:
    """The design's cells, by their number."""
    with (HERE / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def numbered(number: int) -> dict[str, str]:
    """One cell. Raises UsageError if there is none of this number."""
    found = {int(cell["cell"]): cell for cell in cells()}
    if number not in found:
        raise UsageError(f"there is no cell {number}: they have the numbers {min(found)} to {max(found)}")
    return found[number]


def place(results: Path, cell: dict[str, str]) -> Path:
    """The folder of the cell's runs, in that of all cells'."""
    return results / f"cell-{int(cell['cell']):02}"


def seeds(cell: dict[str, str]) -> tuple[int, int]:
    """The cell's own seeds: runs of one seed start from the same adapter and prompts, whatever their cell."""
    first = 2 * int(cell["cell"])
    return first, first + 1


def student_nfe(cell: dict[str, str]) -> int:
    """Training NFE of a student of the cell."""
    return round(BUDGET * float(cell["budget"]))


def teacher_nfe(cell: dict[str, str]) -> int:
    """Training NFE of one teacher: that of a student, times the share of a teacher's updates."""
    return round(student_nfe(cell) * float(cell["teachers"]))


def teach(cell: dict[str, str], seed: int, results: Path) -> list[str]:
    """The command that trains the cell's teachers."""
    words = ["bench", "teach", "--executor", "local", *_where(cell, seed, results)]
    return [*words, *_set({"budget.nfe": teacher_nfe(cell)} | ONE_POINT | tastes(cell))]


def lines(cell: dict[str, str], seed: int, results: Path, teachers: str) -> dict[str, list[str]]:
    """Line -> the command that trains its student, the longest first."""
    nfe, long = student_nfe(cell), long_nfe(cell)
    taught = taught_by(teachers, cell)
    made = {
        "joint_long": ("multi_reward", _joint("joint", cell, long)),
        "rule": ("multi_reward", _joint("rule", cell, nfe)),
        "joint": ("multi_reward", _joint("joint", cell, nfe)),
        "opd": ("opd_analytic", chosen("opd", cell, nfe) | {"budget.nfe": nfe} | taught),
        "soup": ("merge", taught),
    }
    if cell["overlap"] == "all":
        made["shared"] = ("multi_reward", _joint("joint", cell, nfe) | _shared(cell))
    return {
        line: [
            "bench",
            "run",
            "--method",
            method,
            *_where(cell, seed, results),
            *_set(settings | ONE_POINT | tastes(cell)),
        ]
        for line, (method, settings) in made.items()
    }


def taught_by(teachers: str, cell: dict[str, str]) -> dict[str, str]:
    """The settings that name the cell's teachers, whose folder is `teachers`."""
    return {f"teachers.{task}": f"{teachers}/{task}" for task in tasks(cell)}


def long_nfe(cell: dict[str, str]) -> int:
    """Training NFE of a student and its teachers."""
    return student_nfe(cell) + int(cell["tasks"]) * teacher_nfe(cell)


def pairs(cell: dict[str, str]) -> list[tuple[str, str]]:
    """The cell's pairs of tasks, each in a plane of two attributes."""
    numbers = [2 * PLANES.index(plane) + 1 for plane in cell["planes"].split("+")]
    return [(f"taste_{number}", f"taste_{number + 1}") for number in numbers]


def tasks(cell: dict[str, str]) -> list[str]:
    """The cell's tasks."""
    return [task for pair in pairs(cell) for task in pair]


def chosen(line: str, cell: dict[str, str], nfe: int) -> dict[str, Any]:
    """The settings of a line for the cell's rank and the budget nearest to `nfe`, as a ratio, that was tuned for.

    Half way between two, which is half of S, the smaller one counts. Raises MissingError before the tuning.
    """
    if not TUNED.is_file():
        raise MissingError(f"{TUNED} is missing: part2/studies.py writes it when all studies are in tuning/")
    of_rank = yaml.safe_load(TUNED.read_text())[int(cell["rank"])]
    tuned = [share for share, lines in of_rank.items() if line in lines]
    return of_rank[min(tuned, key=lambda share: abs(math.log(nfe / BUDGET / share)))][line]


def tastes(cell: dict[str, str]) -> dict[str, str]:
    """The settings of the cell's tasks: their prompts in common, and the angle within each pair."""
    found = {f"scorers.{task}.overlap": cell["overlap"] for task in tasks(cell)}
    found |= {f"scorers.{task}.among": str(SCORED) for task in tasks(cell)}
    return found | {f"scorers.{turned}.angle": cell["angle"] for _, turned in pairs(cell)}


def _joint(line: str, cell: dict[str, str], nfe: int) -> dict[str, Any]:
    """A line of joint RL with as many images per update as in the central cell: groups are counted for each task.

    Otherwise the number of updates would fall with the number of tasks, which distillation's does not.
    """
    tuned = chosen(line, cell, nfe)
    groups, rest = divmod(tuned["params.groups"] * CENTRAL_TASKS, int(cell["tasks"]))
    if rest:
        raise ValueError(f"{tuned['params.groups']} groups for each of {CENTRAL_TASKS} tasks cannot be shared out")
    return tuned | {"params.groups": groups, "budget.nfe": nfe}


def _shared(cell: dict[str, str]) -> dict[str, str]:
    """Settings by which every image is scored by all tasks, where they have all prompts in common."""
    others = {task: {other: 1.0 for other in tasks(cell) if other != task} for task in tasks(cell)}
    return {"rewards": json.dumps(others)}


def _where(cell: dict[str, str], seed: int, results: Path) -> list[str]:
    where = ["--backbone", f"study-{cell['world']}", "--seeds", str(seed), "--results", str(results)]
    return ["--tasks", ",".join(tasks(cell)), *where]


def _set(settings: dict[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def call(words: list[str], dry: bool) -> int:
    """Print a command and, unless dry, run it with one thread; returns its exit status."""
    # In one piece, because two threads print.
    print(f"{shlex.join(words)}\n", end="", flush=True)
    if dry:
        return 0
    return subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL).returncode


def main() -> int:
    """Run the cell's commands; returns 1 if one of them failed, or 130 if one was interrupted.

    Returns 2 if the cell's folder has runs from an archive, or if the first command is refused, as the others would be.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cell", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--results", type=Path, default=Path("results/study/part2"))
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    cell = numbered(given.cell)
    root = place(given.results, cell)
    if given.seed not in (None, *seeds(cell)):
        parser.error(f"cell {given.cell} has the seeds {seeds(cell)[0]} and {seeds(cell)[1]}, not {given.seed}")

    if not given.dry_run and subprocess.call(["bash", HERE.parent / "trained_here.sh", root]):
        return UsageError.exit_code
    run = partial(call, dry=given.dry_run)
    codes = []
    for seed in [given.seed] if given.seed is not None else seeds(cell):
        codes.append(run(teach(cell, seed, root)))
        if codes[-1] in (INTERRUPTED, UsageError.exit_code):
            return codes[-1]
        sets = sorted(map(str, root.glob(f"teachers-*-s{seed}"))) or ["TEACHERS"]
        if len(sets) > 1:
            print(f"{root} has several sets of teachers of seed {seed}: move all but the cell's own", file=sys.stderr)
            return 1
        made = lines(cell, seed, root, sets[0])
        if codes[-1]:
            print(f"without teachers of seed {seed}, {' and '.join(NEEDS_TEACHERS)} are left out", file=sys.stderr)
            made = {line: words for line, words in made.items() if line not in NEEDS_TEACHERS}
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            codes += pool.map(run, made.values())
    return INTERRUPTED if INTERRUPTED in codes else int(any(codes))


if __name__ == "__main__":
    exit_on_error(main)
