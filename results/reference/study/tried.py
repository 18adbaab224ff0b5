"""Scores by which guidance scales were chosen: python results/reference/study/tried.py WORLD... writes part1/tried.csv.

Archives have neither weights nor the cache of evaluations, so this is read while both are in results/study/WORLD: for
every student of part 1 (PROTOCOL.md), its teachers and the base, the headline on validation prompts at each scale of
the grid. `weights` is the hash of a model's adapter, by which a student's record names its teachers; `run` is the run
that has trained it. Rows of other worlds are kept.
"""

import argparse
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.records import score
from bench.backbones.teacher_files import find_teacher
from bench.config.resolve import describe, resolve
from bench.config.spec import CHOICE, Spec
from bench.errors import MissingError, exit_on_error
from bench.results import results
from bench.scoring.loading import load_features, load_tasks
from bench.system.files import read_record, write_atomic
from bench.training.references import Keys

ROOT = Path("results/study")
OUTPUT = Path(__file__).parent / "part1" / "tried.csv"
COLUMNS = ["world", "model", "run", "weights", "task", "scale", "score"]
BASE = "base"


@cache
def keys_of(run: Path) -> tuple[Spec, Keys]:
    """The settings of a run, and the names that its evaluations have in the cache."""
    spec = resolve(None, None, preset=run / "spec.json")
    descriptor = describe(spec.backbone)
    tasks = load_tasks(spec.tasks, descriptor.world, spec.scorers, spec.device, spec.rewards)
    space = load_features(descriptor.world, spec.scorers, spec.device)
    return spec, Keys(spec, descriptor.fingerprint(), tasks, space)


def tried(root: Path, run: Path, weights: str) -> Iterator[dict[str, Any]]:
    """Task, scale and score of one model, by the settings of a run that was compared with it."""
    spec, keys = keys_of(run)
    for task in spec.tasks:
        for scale in spec.evaluation.guidance_grid:
            path = root / "cache" / f"evaluation-{keys.of(task, weights, scale, CHOICE)}.json"
            if not path.is_file():
                raise MissingError(f"{path} is missing: it has a model of {run.name} on {task} at {scale:g}")
            yield {"task": task, "scale": scale, "score": score(read_record(path))}


def rows(root: Path) -> Iterator[dict[str, Any]]:
    """The rows of one world. Raises MissingError for an evaluation that is not in the cache."""
    finished = [run for run in results(root) if run.summary]
    compared = [run for run in finished if run.spec["method"] != "single_task"]
    if not compared:
        raise MissingError(f"no finished run is in {root}: run part1.sh first")
    any_run = compared[0].folder
    models = [(BASE, "", BASE, any_run)]
    # Teachers are evaluated with the grid only when their student is.
    taught = {teacher["hash"] for run in compared for teacher in run.summary["teachers"].values()}
    for run in finished:
        weights = find_teacher("student", str(run.weights)).hash
        if run in compared:
            models.append(("student", run.folder.name, weights, run.folder))
        elif weights in taught:
            models.append((f"teacher {run.spec['tasks'][0]}", run.folder.name, weights, any_run))
    for name, trained, weights, settings in models:
        for row in tried(root, settings, weights):
            yield {"world": root.name, "model": name, "run": trained, "weights": weights} | row


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="+", help="backbones of the runs")
    given = parser.parse_args()
    before = pd.read_csv(OUTPUT, keep_default_na=False) if OUTPUT.is_file() else pd.DataFrame(columns=COLUMNS)
    made = pd.DataFrame([row for world in given.worlds for row in rows(ROOT / world)], columns=COLUMNS)
    whole = pd.concat([before[~before["world"].isin(given.worlds)], made.round(6)])
    write_atomic(OUTPUT, whole.sort_values(COLUMNS[:-1]).to_csv(index=False).encode())


if __name__ == "__main__":
    exit_on_error(main)
