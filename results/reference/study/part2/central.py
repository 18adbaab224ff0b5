"""Part 2's central cell, for its tuning: python results/reference/study/part2/central.py trains the teachers there.

It has no row in cells.csv. Its teachers have one seed and, for either budget of a student, all of a teacher's updates.
With --dry-run it prints the `bench` commands.
"""

import argparse
from pathlib import Path

from cell import call, tasks, tastes, taught_by, teach

from bench.errors import exit_on_error

ROOT = Path("results/study/part2/central")
SEED = 100
BUDGETS = {"quarter": "0.25", "full": "1"}
"""Name of a student's budget -> its share of S."""
TEACHERS = {"quarter": "teachers-5d33a37737-s100", "full": "teachers-07fb1b23e2-s100"}
"""The teachers' folder in ROOT, by the budget of each."""


def row(budget: str) -> dict[str, str]:
    """The central cell with this budget, as cells.csv would have it: half of the prompts in common, 90 degrees."""
    middle = {"overlap": "half", "angle": "90", "tasks": "4", "planes": "colour+place", "world": "1", "teachers": "1"}
    return middle | {"budget": BUDGETS[budget]}


BACKBONE = f"study-{row('full')['world']}"
TASKS = tuple(tasks(row("full")))
"""The central cell's tasks."""


def settings() -> dict[str, dict[str, str]]:
    """Settings of a study: scorer of each task -> its prompts in common, and the angle within a pair."""
    found: dict[str, dict[str, str]] = {}
    for key, value in tastes(row("full")).items():
        scorer, _, name = key.rpartition(".")
        found.setdefault(scorer, {})[name] = value
    return found


def taught(budget: str) -> dict[str, str]:
    """Settings of a study of distillation: the central teachers of this budget."""
    return taught_by(f"{ROOT}/{TEACHERS[budget]}", row(budget))


def main() -> int:
    """Train the teachers of both budgets; returns the exit status of the command that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    for budget in BUDGETS:
        if code := call(teach(row(budget), SEED, ROOT), given.dry_run):
            return code
    return 0


if __name__ == "__main__":
    exit_on_error(main)
