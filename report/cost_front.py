"""Quality against cost: mean score of every line by the network evaluations that it spent, and the front."""

from dataclasses import dataclass

from bench.analysis.stats import Estimate
from report.charts import cost_chart
from report.figures import Figure, Levels, draw_levels, label_ends, says, with_levels
from report.highlights import looks_of
from report.lines import Pool
from report.style import MOST, PLAIN, Look, is_column, logarithmic
from report.table import cell
from report.tables import PoolTables

NAMED = 8
"""Largest number of names beside the figure."""


@dataclass(frozen=True)
class Spent:
    """One line's cost and mean score."""

    name: str
    """Its own among those of a place; points of one line at several budgets may share it."""
    settings: str
    """Hash of its settings without the budget."""
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
    """The lines of one place that cost something, with the means of the table of scores."""
    found: list[Spent] = []
    taken: dict[str, str] = {}
    for pool, tables in made:
        if pool.whole:
            continue
        look = looks_of(pool, tables, pool.lines)
        for line, row in zip(pool.lines, tables.scores.rows):
            # Lines with other settings may have one title, because a title tells only what differs within a budget.
            is_other = taken.setdefault(line.title, line.settings) != line.settings
            name = f"{line.title} at {line.training_nfe:,.0f}" if is_other else line.title
            mean, style = cell(row, "mean", Estimate), look.get(line.label, PLAIN)
            point = Spent(name, line.settings, line.training_nfe, line.total_nfe, mean, style)
            found += [point] if point.dearer > 0 else []
    return found


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
    # All lines decide about the front; of very many, the best are drawn, and those on the front.
    ranked = sorted(points, key=lambda p: (not p.matters, p not in best, -p.mean.value))
    left_out, points = len(points) - len(ranked[:MOST]), ranked[:MOST]
    # The dearest point of a line has its name; those in colour come first.
    dearest = {point.settings: point for point in sorted(points, key=lambda p: p.dearer)}
    shown = [point for point in dearest.values() if point.matters]
    shown += [point for point in best if not point.matters and point is dearest.get(point.settings)]

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
                says(mark, [f"{point.name}: {value!r} at {x:,.0f} NFE, {said}"])
        for settings in dict.fromkeys(point.settings for point in points if point.matters):
            own = sorted((p for p in points if p.settings == settings), key=lambda p: p.dearer)
            axes.plot([p.dearer for p in own], [p.mean.value for p in own], ":", color=own[0].look.colour, zorder=1)
        draw_levels(axes.axhline, "mean", levels)
        if len(best) > 1:
            axes.step(
                [p.with_teachers for p in best], [p.mean.value for p in best], where="post", color="0.35",
                linewidth=0.9, zorder=1,
            )  # fmt: skip
        ends = [(point.dearer, point.mean.value, point.name, point.look) for point in shown[:NAMED]]
        label_ends(axes, ends, narrow)
        axes.set(xlabel="NFE per run", ylabel="mean score")
        return figure

    title = (
        "Quality against cost: mean score by NFE per run. Hollow: training alone. Full: with the teachers' training. "
        "Steps: the front, teachers counted. Dots join a line's budgets."
    )
    names = ", ".join(point.name for point in best) or "no line"
    alt = f"Mean score against cost of {len(points)} lines. On the front, teachers counted: {names}."
    rows = [
        {
            "line": p.name, "point": str(k), "nfe": nfe, "counted": counted, "mean": p.mean.value, "low": p.mean.low,
            "high": p.mean.high,
        }
        for k, p in enumerate(points)
        for nfe, counted in dict.fromkeys([(p.training, "training"), (p.dearer, "training and teachers")])
        if nfe > 0 and (counted != "training" or p.dearer != p.training)
    ]  # fmt: skip
    edge = [{"nfe": p.with_teachers, "mean": p.mean.value} for p in best]
    look = {point.name: point.look for point in points}
    said = with_levels(title, {"mean": levels.get("mean", {})})
    said += f" {left_out} further lines are not drawn." if left_out else ""
    return Figure(name, said, alt, draw, responsive=True, chart=lambda: cost_chart(rows, edge, levels, look))
