"""What happened along training: python -m report.along COMPARISON.json...

From the records of a comparison: each task's score at every recorded point of the budget, how far it fell from its
best, and what the known utility did while the learned reward rose; where runs recorded it (probes.interference), how
the tasks' gradients pulled.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import exit_on_error
from bench.probes.forgetting import Forgetting, by_share, forgetting
from bench.probes.overoptimisation import OverOptimisation, over_optimisation
from bench.records import Record
from bench.stats import Estimate, estimate, stratified_mean
from report.load import Comparison, comparison


@dataclass(frozen=True)
class Along:
    """One method's course, task by task."""

    label: str
    course: dict[str, dict[float, float]]
    """Task -> share of the budget -> score, mean over runs: the anytime curve, and the stage-by-task score matrix."""
    forgetting: dict[str, Forgetting]
    over_optimisation: dict[str, OverOptimisation]
    """Only tasks whose utility is known."""
    interference: dict[str, dict[float, Estimate]]
    """'task a | task b' -> share of the budget -> cosine of the tasks' gradients, interval over runs."""


def along(label: str, records: list[Record], tasks: tuple[str, ...]) -> Along:
    """Read the evaluation points of a method's runs."""
    runs = [r.evaluations for r in records]
    found = {task: over_optimisation(runs, task) for task in tasks}
    return Along(
        label,
        {task: course(runs, task) for task in tasks},
        {t: forgetting(runs, t) for t in tasks},
        {t: o for t, o in found.items() if o},
        cosines(records),
    )


def course(runs: list[list[dict]], task: str) -> dict[float, float]:
    """Share of the budget -> a task's headline score, mean over runs, at the points that all runs have."""
    points, strata = by_share(runs, task)
    return {share: stratified_mean(values.mean(0), strata) for share, values in sorted(points.items())}


def cosines(records: list[Record]) -> dict[str, dict[float, Estimate]]:
    """Interference over all weights by pair of tasks and point of the budget; empty where no run recorded it."""
    found: dict[str, dict[float, list[float]]] = {}
    for record in records:
        for row in record.probes:
            for pair, by_group in row["interference"].items():
                found.setdefault(pair, {}).setdefault(row["share"], []).append(by_group["all"])
    return {
        pair: {share: estimate(np.array(values)[:, None], np.zeros(1)) for share, values in sorted(points.items())}
        for pair, points in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "comparisons", type=Path, nargs="+", help="comparison-*.json of bench compare; its runs lie beside it"
    )
    for path in parser.parse_args().comparisons:
        show(comparison(path))


def show(found: Comparison) -> None:
    """Tables to stdout."""
    from rich.console import Console
    from rich.table import Table

    lines, tasks = [along(line.label, line.records, found.tasks) for line in found.lines], found.tasks
    shares = sorted({share for line in lines for points in line.course.values() for share in points})
    courses = Table(title="score by share of the budget, mean over seeds")
    for head in ("method", "task", *(f"{share:.0%}" for share in shares)):
        courses.add_column(head)
    for line in lines:
        for task, points in line.course.items():
            courses.add_row(line.label, task, *(f"{points[s]:.3f}" if s in points else "" for s in shares))
    falls = Table(title="forgetting: best recorded point minus the end, mean [95% interval]")
    for head in ("method", *tasks):
        falls.add_column(head)
    for line in lines:
        falls.add_row(line.label, *(str(line.forgetting[t].drop_from_best) for t in tasks))
    over = Table(title="over-optimisation: the known utility's fall from its best point, and the reward's rise since")
    for head in ("method", "task", "reward at the end", "known utility at the end", "utility fell", "reward rose"):
        over.add_column(head)
    for line in lines:
        for task, o in line.over_optimisation.items():
            over.add_row(line.label, task, str(o.proxy[-1]), str(o.gold[-1]), str(o.gold_drop), str(o.proxy_meanwhile))
    terminal = Console(width=150, highlight=False)
    terminal.print(found.title)
    terminal.print(courses)
    terminal.print(falls)
    terminal.print(over)
    measured = [line for line in lines if line.interference]
    if measured:
        pulls = Table(title="cosine of two tasks' gradients (a task with itself: two independent halves, the ceiling)")
        for head in ("method", "tasks", "first point", "end"):
            pulls.add_column(head)
        for line in measured:
            for pair, points in line.interference.items():
                pulls.add_row(line.label, pair, str(points[min(points)]), str(points[max(points)]))
        terminal.print(pulls)


if __name__ == "__main__":
    exit_on_error(main)
