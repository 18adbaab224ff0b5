"""Quality against cost: mean score of every line by the network evaluations that it spent, and the front."""

from dataclasses import dataclass

from bench.analysis.stats import Estimate
from report.charts import cost_chart
from report.figures import Figure, Levels, draw_levels, label_ends, says, with_levels
from report.highlights import looks_of
from report.lines import Pool
from report.style import Look, is_column, logarithmic
from report.table import cell
from report.tables import PoolTables

NAMED = 8
"""Largest number of names beside the figure."""


@dataclass(frozen=True)
class Spent:
    """One line's cost and mean score."""

    line: str
    title: str
    """The line's name at any budget."""
    training: float
    with_teachers: float
    """NaN if the teachers' cost is unknown."""
    mean: Estimate
    look: Look

    @property
    def matters(self) -> bool:
        """Whether the line is in colour."""
        return self.look.matters

    @property
    def dearer(self) -> float:
        """The cost with teachers, or without where theirs is unknown."""
        return self.with_teachers if self.with_teachers > 0 else self.training


def spent(made: list[tuple[Pool, PoolTables]]) -> list[Spent]:
    """The lines of one place that were trained, with the means of the table of scores."""
    found: dict[str, Spent] = {}
    for pool, tables in made:
        if pool.whole:
            continue
        look = looks_of(pool, tables, pool.lines)
        for line, row in zip(pool.lines, tables.scores.rows):
            if line.label in look and line.training_nfe + line.teacher_nfe != 0:
                label = line.label if line.label not in found else f"{line.label} at {line.training_nfe:,.0f}"
                mean, style = cell(row, "mean", Estimate), look[line.label]
                found[label] = Spent(label, line.title, line.training_nfe, line.total_nfe, mean, style)
    return list(found.values())


def front(points: list[Spent]) -> list[Spent]:
    """The lines that no other line beats at the same or a lower cost, teachers counted, cheapest first."""
    best, found = float("-inf"), []
    for point in sorted((p for p in points if p.with_teachers > 0), key=lambda p: (p.with_teachers, -p.mean.value)):
        if point.mean.value > best:
            best = point.mean.value
            found.append(point)
    return found


def cost_figure(points: list[Spent], levels: Levels, name: str) -> Figure:
    """Mean score by NFE: hollow marks for training alone, full ones with the teachers' training, and the front."""
    best = front(points)
    # The dearest point of a title has its name; those in colour come first.
    dearest = {point.title: point for point in sorted(points, key=lambda p: p.dearer)}
    shown = [point for point in dearest.values() if point.matters]
    shown += [point for point in best if not point.matters and point is dearest[point.title]]

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        figure, axes = plt.subplots(figsize=(width, 2.9 if narrow else 3.2))
        costs = [x for point in points for x in (point.training, point.with_teachers) if x > 0]
        logarithmic(axes, "x", dense=max(costs) < 20 * min(costs))
        for point in sorted(points, key=lambda p: p.matters):
            look, value = point.look, point.mean.value
            places = [x for x in (point.training, point.with_teachers) if x > 0]
            axes.plot(places, [value] * len(places), "-", color=look.colour, linewidth=0.7, alpha=0.6)
            for x in places:
                full = x == point.with_teachers
                (mark,) = axes.plot(
                    [x], [value], look.marker, color=look.colour, markerfacecolor=look.colour if full else "none"
                )
                said = "with teachers" if full else "training"
                says(mark, [f"{point.line}: {value!r} at {x:,.0f} NFE, {said}"])
        for title in dict.fromkeys(point.title for point in points if point.matters):
            own = sorted((p for p in points if p.title == title), key=lambda p: p.dearer)
            axes.plot([p.dearer for p in own], [p.mean.value for p in own], ":", color=own[0].look.colour, zorder=1)
        draw_levels(axes.axhline, "mean", levels)
        if len(best) > 1:
            axes.step(
                [p.with_teachers for p in best], [p.mean.value for p in best], where="post", color="0.35",
                linewidth=0.9, zorder=1,
            )  # fmt: skip
        ends = [(point.dearer, point.mean.value, point.title, point.look) for point in shown[:NAMED]]
        label_ends(axes, ends, narrow)
        axes.set(xlabel="NFE per run", ylabel="mean score")
        return figure

    title = (
        "Quality against cost: mean score by NFE per run. Hollow: training alone. Full: with the teachers' training. "
        "Steps: the front, teachers counted. Dots join a line's budgets."
    )
    names = ", ".join(point.line for point in best) or "no line"
    alt = f"Mean score against cost of {len(points)} lines. On the front, teachers counted: {names}."
    rows = [
        {"line": p.title, "nfe": nfe, "counted": counted, "mean": p.mean.value, "low": p.mean.low, "high": p.mean.high}
        for p in points
        for nfe, counted in ((p.training, "training"), (p.with_teachers, "training and teachers"))
        if nfe > 0
    ]
    look = {point.title: point.look for point in points}
    said = with_levels(title, {"mean": levels.get("mean", {})})
    return Figure(name, said, alt, draw, responsive=True, chart=lambda: cost_chart(rows, look))
