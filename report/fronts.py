"""Fronts: what lines that differ only in the weights of their tasks reach together."""

import math
from dataclasses import replace
from itertools import combinations

import pandas as pd

from bench.analysis.fronts import FAMILY, TEACHERS, Front
from bench.analysis.names import readable
from report.figures import Figure, Levels, draw_curve, legend, room, says
from report.lines import Line
from report.style import Look, is_column
from report.table import Column, Row, Table


def front_parts(
    found: list[Front], tasks: tuple[str, ...], title: str, beside: Levels, look: dict[str, Look], name: str
) -> tuple[Table, Figure, Table]:
    """Table of hypervolumes, figure and table of points; `beside` has the base's scores, `look` a style per front."""
    hypervolumes = Table(
        name,
        f"Fronts: {title}",
        "The lines of a front differ only in params.weights, or a front has the students of one line that were trained "
        "for all weights at once. The hypervolume is the volume of the vectors of scores "
        "from 0 in every task up to some point of the front; it is relative to 0 and not to the base, because a front "
        "between opposed rewards has points below the base. 95% intervals are basic bootstraps over seeds and prompts, "
        "drawn jointly for all points, and differences are paired by seed and prompt; they are not corrected for "
        "several comparisons. More points cover more volume: compare fronts with as many points. "
        "Dominance is judged by mean scores. The teachers count as a front with one point each.",
        [
            Column("front", "front"),
            Column("seeds", "seeds", "count"),
            Column("points", "points", "count"),
            Column("best", "not dominated"),
            Column("hypervolume", "hypervolume", "score"),
            Column("against", f"minus {found[0].label}", "change"),
        ],
    )
    points = Table(
        f"{name}-points",
        f"Points of the fronts: {title}",
        "Means with 95% intervals over the seeds that all lines of a front have. A point is dominated if another point "
        "of its front is at least as good in every task and better in one.",
        [
            Column("front", "front"),
            Column("line", "line"),
            *(Column(task, task, "score") for task in tasks),
            Column("dominated", "dominated"),
        ],
    )
    for front in found:
        row: Row = {"front": front.label, "seeds": front.seeds, "points": len(front.points)}
        row |= {"best": "; ".join(front.best), "hypervolume": front.hypervolume, "against": front.against_first}
        hypervolumes.rows.append(row)
        for line, scores in front.points.items():
            told = {"dominated": "no" if line in front.best else "yes"}
            points.rows.append({"front": front.label, "line": line, **scores, **told})
    return hypervolumes, fronts_figure(points.frame(), tasks, beside, look, name), points


def titled_front(front: Front, lines: dict[str, Line]) -> Front:
    """The front with titles for the labels of lines; `lines` maps a label as typed to its line."""
    members = [lines[label] for label in front.points if label in lines]
    names = {label: lines[label].label if label in lines else label for label in front.points}
    alone = front.label.removesuffix(f" {FAMILY}")
    if alone in lines:
        label = front.label.replace(alone, lines[alone].label, 1)
    else:
        label = readable(front.label, members[0].records[0].spec["params"]) if members else front.label
    points = {names[label]: scores for label, scores in front.points.items()}
    return replace(front, label=label, points=points, best=tuple(names[label] for label in front.best))


def fronts_figure(
    frame: pd.DataFrame, tasks: tuple[str, ...], beside: Levels, look: dict[str, Look], name: str
) -> Figure:
    """Scores of all points, one panel per pair of tasks; the points of a front are joined in the order of the first."""
    pairs = list(combinations(tasks, 2))
    lines = [label for label in look if (frame["front"] == label).any()]

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        columns = min(1 if narrow else 3, len(pairs))
        rows = math.ceil(len(pairs) / columns)
        size = (width, 2.6 * rows + room(lines, narrow))
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
        for axes in grid.flat[len(pairs) :]:
            axes.remove()
        for axes, (a, b) in zip(grid.flat, pairs):
            for label in lines:
                points = frame[frame["front"] == label].sort_values([a, b])
                said = [f"{row['line']}: {a} {row[a]!r}, {b} {row[b]!r}" for _, row in points.iterrows()]
                draw_curve(axes, points[a], points[b], look[label], said)
            taught = frame[frame["front"] == TEACHERS]
            (stars,) = axes.plot(taught[a], taught[b], "*", color="0.5", markersize=8)
            says(stars, [f"{row['line']}: {a} {row[a]!r}, {b} {row[b]!r}" for _, row in taught.iterrows()])
            if all("base" in beside.get(task, {}) for task in (a, b)):
                x, y = beside[a]["base"], beside[b]["base"]
                (cross,) = axes.plot([x], [y], "X", color="0.5", markersize=6)
                says(cross, [f"base: {a} {x!r}, {b} {y!r}"])
            axes.set(xlabel=f"{a} (score)", ylabel=f"{b} (score)")
        legend(figure, grid.flat[0], lines, narrow)
        return figure

    title = "Fronts: scores at different weights of the tasks. Stars: teachers. Cross: base."
    alt = f"Scores of {len(frame)} points of {len(lines)} fronts by pairs of tasks; the tables have the numbers."
    return Figure(name, title, alt, draw)
