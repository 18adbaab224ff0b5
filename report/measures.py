"""Diversity of the images and distance from the base: tables and a figure of what scores do not show."""

import math

import numpy as np
import pandas as pd

from bench.analysis.beside import measures, recorded
from bench.analysis.comparison import Standing
from bench.analysis.forgetting import by_share
from bench.analysis.metric_names import DIVERSITY, DRIFT, ENTROPY, OVER_PROMPTS, is_measure
from bench.analysis.records import model_rows, part_along
from bench.analysis.stats import Estimate, estimate, estimates
from report.figures import Figure, Levels, draw_curve, draw_levels, legend, room, with_levels
from report.lines import Pool
from report.style import Look, is_column
from report.table import Column, Row, Table
from report.tables import BASE, References

MEAN = "mean"
"""In the column of tasks: the mean over them."""
SAID = (
    "Measured on held-out prompts. Diversity is the mean distance between images in a feature space, which the "
    "heading names after the @: between images of one prompt (four images of about sixteen prompts), and over prompts "
    "(all pairs of images of different prompts). Its unit is that of the space, so only its changes mean something. "
    "Entropy is that of an attribute, in bits, over all images of a task whose caption leaves it open; it is 0 if all "
    "of them have the same. Drift is the mean over the sampling path of the squared difference between a model's "
    "velocity and the base's at the model's own states, per dimension, on the prompts of the diversity and at the same "
    "guidance scale. Guidance narrows what a model draws: unless the title begins with a scale, the base and teachers "
    "are measured at their own. The mean is over the tasks that have the measure. Intervals are 95%, over seeds and "
    "prompts; with few seeds one may exceed a measure's range. A dash means decided by the captions, or not recorded "
    "in every run of the line (runs of versions up to 0.2 have no measures)."
)


def head_of(metric: str) -> str:
    """A measure's heading."""
    name, _, space = metric.partition("@")
    if space:
        return f"{'within a prompt' if name == DIVERSITY else 'over prompts'} @{space}"
    return f"{metric.removeprefix(f'{ENTROPY}.')} entropy" if metric != DRIFT else DRIFT


def order(metric: str) -> tuple[int, str]:
    """Drift first, then diversity within and over prompts, then entropies."""
    starts = (DRIFT, f"{DIVERSITY}@", f"{OVER_PROMPTS}@", ENTROPY)
    return next(place for place, start in enumerate(starts) if metric.startswith(start)), metric


def measures_tables(pool: Pool, standings: dict[str, Standing], references: References, prefix: str) -> list[Table]:
    """Measures at the guidance scales of the final scores and, where it is another, at that of points along training.

    `standings` are those of the lines.
    """
    known = {label: standing.measures for label, standing in standings.items()}
    tables = [_measures_table(pool, references, "models", known, f"{prefix}diversity", "")]
    summaries = [record.summary for line in pool.lines for record in line.records]
    if (along := part_along(summaries)) != "models":
        where = f" with every model at guidance {pool.world.guidance:g}"
        # There the base is not at its best guidance.
        references = [("base" if label == BASE else label, shown, of) for label, shown, of in references]
        tables.append(_measures_table(pool, references, along, {}, f"{prefix}diversity-along", where))
    return [table for table in tables if table]


def _measures_table(
    pool: Pool, references: References, among: str, known: dict[str, dict[str, Estimate]], name: str, where: str
) -> Table | None:
    """Measures of all lines, the base and the teachers by task and as a mean over tasks; None if none is recorded.

    `known` are means over tasks, by label.
    """
    students = dict.fromkeys(pool.tasks, "student")
    models = [(line.label, [record.summary for record in line.records], students) for line in pool.lines]
    rows: list[Row] = []
    for label, summaries, of in models + references:
        means = known[label] if label in known else measures(summaries, of, among)
        if not means:
            continue
        for task, model in of.items():
            own = filter(is_measure, recorded(summaries, model, task, among))
            found = {metric: estimate(*model_rows(summaries, model, task, metric, among)) for metric in own}
            rows.append({"line": label, "task": task, **found})
        rows.append({"line": label, "task": MEAN, **means})
    metrics = sorted({key for row in rows for key in row if key not in ("line", "task")}, key=order)
    if not metrics:
        return None
    columns = [Column("line", "method"), Column("task", "task")]
    columns += [Column(metric, head_of(metric), "score") for metric in metrics]
    return Table(name, f"Diversity and drift{where}: {pool.title}", SAID, columns, rows)


def drift_table(pool: Pool, prefix: str) -> Table | None:
    """Score and drift at every recorded point that all seeds of a line have; None without such points."""
    table = Table(
        f"{prefix}drift",
        f"Score against drift: {pool.title}",
        "Gao et al. (arXiv 2210.10760) compare rewards at equal distance from the base: a method whose score rises "
        "less for the same distance gives up more of the base for it. Drift as in the table of diversity; the distance "
        "is its square root. Intervals are 95%.",
        [
            Column("line", "method"),
            Column("task", "task"),
            Column("share", "fraction of budget", "share"),
            Column("drift", "drift", "score"),
            Column("distance", "distance", "score"),
            Column("score", "score", "score"),
        ],
    )
    for line in pool.lines:
        runs = [record.evaluations for record in line.records]
        for task in pool.tasks:
            drifts, places = by_share(runs, task, DRIFT)
            scores, pictures = by_share(runs, task)
            shares = sorted(drifts.keys() & scores.keys())
            if not shares:
                continue
            drifted = estimates([drifts[share] for share in shares], places)
            scored = estimates([scores[share] for share in shares], pictures)
            for share, drift, score in zip(shares, drifted, scored):
                distance = Estimate(*(np.sqrt(np.maximum(0, [drift.value, drift.low, drift.high])).tolist()))
                row: Row = {"line": line.label, "task": task, "share": share}
                table.rows.append(row | {"drift": drift, "distance": distance, "score": score})
    return table if table.rows else None


def drift_figure(frame: pd.DataFrame, tasks: list[str], look: dict[str, Look], levels: Levels, name: str) -> Figure:
    """Score against distance from the base, one path over training per line and a panel per task with drifts."""
    tasks = [task for task in tasks if (frame["task"] == task).any()]
    lines = [line for line in look if (frame["line"] == line).any()]

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        columns = 1 if narrow else min(3, len(tasks))
        rows = math.ceil(len(tasks) / columns)
        figure, grid = plt.subplots(rows, columns, figsize=(width, 2.1 * rows + room(lines, narrow)), squeeze=False)
        for axes in grid.flat[len(tasks) :]:
            axes.remove()
        for axes, task in zip(grid.flat, tasks):
            for line in lines:
                points = frame[(frame["line"] == line) & (frame["task"] == task)]
                said = [
                    f"{line}, {task} at {row['share']:.0%}: distance {row['distance']!r}, score {row['score']!r}"
                    for _, row in points.iterrows()
                ]
                draw_curve(axes, points["distance"], points["score"], look[line], said)
            draw_levels(axes.axhline, task, levels)
            # From 0 and with the levels, so that noise is not drawn as if it were a path.
            far = frame[frame["task"] == task]["distance"].max()
            axes.set(title=task, xlabel="distance from the base", ylabel="score", xlim=(0, 1.06 * far or 1))
        legend(figure, grid.flat[0], lines, narrow)
        return figure

    title = "Score against distance from the base: of two lines with the same score, the one to the left changed less."
    return Figure(
        name,
        with_levels(title, levels),
        f"Held-out score against the root mean square change of velocity of {len(lines)} lines, {len(tasks)} panels.",
        draw,
    )
