"""Final scores of part 1: python results/reference/study/scores.py writes part1/scores.csv from the archives beside it.

One row for every student, and for each world and seed one for the base and one for the teachers, each on its own task:
the headline of every task at the model's own best guidance scale, which is given beside it, their mean, the trained
rewards and GenEval's official verdict, and the headline of each of geneval's tags; training NFE with and without the
teachers'; and seconds of training and peak memory, which depend on what else the machine did.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.records import score
from bench.errors import exit_on_error
from bench.results import results
from bench.system.files import write_atomic

HERE = Path(__file__).parent
BASE, STUDENT, TEACHERS = "base", "student", "teachers"
BESIDE = ("official", "reward")


def rows(summary: dict[str, Any], world: str) -> Iterator[dict[str, Any]]:
    """The rows of one run: its student, and the base and the teachers from a run that has teachers."""
    cost, tasks = summary["cost"], list(summary["models"][STUDENT])
    taught = sum(teacher["evaluations"] for teacher in summary["teachers"].values())
    spent = {
        "training_nfe": cost["evaluations"]["training"],
        "nfe_with_teachers": cost["evaluations"]["training"] + taught,
        "training_seconds": round(cost["seconds"]["training"]),
        "peak_gb": max(cost["peak_bytes"].values()) / 1e9,
    }
    for line in (summary["method"], *((BASE, TEACHERS) if taught else ())):
        row: dict[str, Any] = {"world": world, "seed": summary["seed"], "line": line}
        beside: dict[str, float] = {}
        tags: dict[str, float] = {}
        row |= spent if line == summary["method"] else {}
        for task in tasks:
            model = {BASE: BASE, TEACHERS: f"teacher {task}"}.get(line, STUDENT)
            row |= {task: score(summary["models"][model][task]), f"{task}_guidance": summary["guidance"][model][task]}
            record = summary["models"][model][task]
            beside |= {
                f"{task} {name}": score(record | {"headline": name}) for name in BESIDE if name in record["rows"]
            }
            tags |= by_tag(record)
        yield row | {"mean": np.mean([row[task] for task in tasks])} | beside | tags


def by_tag(record: dict[str, Any]) -> dict[str, float]:
    """Mean headline of each tag of a task's prompts; empty where all have the same."""
    values = pd.Series(record["rows"][record["headline"]]).groupby(record["strata"], sort=False).mean()
    return {f"{record['task']} {tag}": value for tag, value in values.items()} if len(values) > 1 else {}


def table(folder: Path) -> pd.DataFrame:
    """The rows of all archives in a folder, by world, seed and line."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.tar.xz")):
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run(["tar", "xJf", path, "-C", unpacked], check=True)
            for run in results(unpacked):
                if run.spec["method"] != "single_task":
                    found += rows(run.summary, run.spec["backbone"])
    order = ["world", "seed", "line", "training_nfe"]
    return pd.DataFrame(found).round(6).sort_values(order, ignore_index=True)


def main() -> None:
    """Write the table."""
    write_atomic(HERE / "part1" / "scores.csv", table(HERE / "part1").to_csv(index=False).encode())


if __name__ == "__main__":
    exit_on_error(main)
