"""The forest plot: every line's difference to its reference line with its interval, grouped by budget."""

import math
from dataclasses import dataclass

from bench.analysis.comparison import PRIMARY_FAMILY
from bench.analysis.stats import Difference, Estimate
from report.charts import forest_chart
from report.figures import Figure, broken, says
from report.highlights import looks_of
from report.lines import Pool
from report.style import PLAIN, Look, is_column
from report.table import Row, cell
from report.tables import PoolTables

FEW = 8
"""Largest number of lines of one budget in the plot."""


@dataclass(frozen=True)
class Group:
    """The lines of one budget, best first."""

    title: str
    """What its points are: at which cost, minus which line."""
    reference: str
    lines: dict[str, Difference]
    looks: dict[str, Look]
    left_out: int = 0
    """Number of lines that only the table has."""
    claimed: tuple[float, float] | None = None
    """Between which differences a claim is true; None where nothing is claimed."""


def groups(made: list[tuple[Pool, PoolTables]]) -> list[Group]:
    """The groups of one place. A pool that counts the teachers repeats lines, so only those it adds are shown."""
    found = []
    alone = {line.label for pool, tables in made if not pool.whole for line in pool.lines}
    for pool, tables in made:
        rows = [row for row in tables.scores.rows[: len(pool.lines)] if row["line"] != tables.reference]
        if pool.whole:
            rows = [row for row in rows if row["line"] not in alone]
        rows = [row for row in rows if not math.isnan(cell(row, "against", Difference).value)]
        shown = _shown(rows)
        if shown:
            ordered = {str(row["line"]): cell(row, "against", Difference) for row in shown}
            counted = " with the teachers' training" if pool.whole else ""
            title = f"At {pool.budget:,.0f} NFE{counted}, minus {tables.reference}"
            look = looks_of(pool, tables, pool.lines)
            found.append(Group(title, tables.reference, ordered, look, len(rows) - len(shown)))
    return found


def _shown(rows: list[Row]) -> list[Row]:
    """The paper's comparisons and the best others, by their difference."""

    def rank(row: Row) -> tuple[bool, float]:
        return row["family"] != PRIMARY_FAMILY, -cell(row, "mean", Estimate).value

    return sorted(sorted(rows, key=rank)[:FEW], key=lambda row: -cell(row, "against", Difference).value)


def forest_figure(
    found: list[Group], name: str, own_title: str = "", measure: str = "difference of mean scores"
) -> Figure:
    """Differences by group; points left of the line at 0 are below the reference.

    `own_title` replaces the one about lines of equal cost. `measure` is what the axis shows. Where a group has a claim,
    the side on which it is true is shaded.
    """
    ends = _ends(found)
    axis = f"{measure}, 95% interval"

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        letters, size = (22, 6) if narrow else (60, 7)
        # A title takes the place of a line.
        labels = [[broken(line, letters, ",=") for line in group.lines] for group in found]
        heights = [[0.08 + 0.12 * (label.count("\n") + 1) for label in own] for own in labels]
        heads = [broken(group.title, 38 if narrow else 110, ",") for group in found]
        above = [0.26 + 0.11 * head.count("\n") for head in heads]
        total = sum(sum(own) + 0.08 for own in heights) + sum(above) + 0.35
        figure, axes = plt.subplots(figsize=(width, total))
        axes.axvline(0, color="0.4", linewidth=0.8)
        # Its x is 0 at the left edge of the axes, its y that of the data.
        beside = axes.get_yaxis_transform()
        places, texts, y = [], [], 0.0
        axes.set_xlim(*ends)
        for group, own, tall, head, gap_above in zip(found, labels, heights, heads, above):
            y += gap_above
            axes.text(0, y - 0.05, head, fontweight="bold", fontsize=size, va="bottom", transform=beside)
            if (side := _within(group.claimed, ends)) is not None:
                axes.fill_betweenx([y, y + sum(tall)], *side, color="0.93", linewidth=0, zorder=0)
            for (line, gap), label, height in zip(group.lines.items(), own, tall):
                y += height / 2
                look = group.looks.get(line, PLAIN)
                axes.plot([gap.low, gap.high], [y, y], "-", color=look.colour, linewidth=1.6)
                (mark,) = axes.plot([gap.value], [y], look.marker, color=look.colour)
                says(mark, [f"{line}, minus {group.reference}: {gap.value!r} [{gap.low!r}, {gap.high!r}]"])
                places.append(y)
                texts.append(label)
                y += height / 2
            y += 0.08
        axes.set(yticks=places, ylim=(y + 0.02, 0), xlabel=axis)
        axes.set_yticklabels(texts, fontsize=size)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return figure

    count = sum(len(group.lines) for group in found)
    more = sum(group.left_out for group in found)
    rest = f" {more} more lines are in the tables of scores." if more else ""
    title = own_title or (
        "Difference of the mean score to the reference line, paired by seed and prompt, with 95% interval (not "
        f"corrected for several comparisons), at equal cost.{rest}"
    )
    budgets = "one budget" if len(found) == 1 else f"{len(found)} budgets"
    alt = f"Differences with intervals of {count} lines at {budgets}; the tables of scores have the numbers."
    if own_title:
        alt = f"{count} differences with intervals in {len(found)} groups; the table below has the numbers."
    rows = [
        {"group": group.title, "line": line, "value": gap.value, "low": gap.low, "high": gap.high}
        for group in found
        for line, gap in group.lines.items()
    ]
    sides = {group.title: side for group in found if (side := _within(group.claimed, ends)) is not None}
    look = {line: group.looks.get(line, PLAIN) for group in found for line in group.lines}
    return Figure(name, title, alt, draw, responsive=True, chart=lambda: forest_chart(rows, look, axis, ends, sides))


def _ends(found: list[Group]) -> tuple[float, float]:
    """The ends of the axis: all differences and intervals, those that are known, and 0, and a little more."""
    gaps = [gap for group in found for gap in group.lines.values()]
    known = [end for gap in gaps for end in (gap.value, gap.low, gap.high) if math.isfinite(end)]
    low, high = min([0.0, *known]), max([0.0, *known])
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _within(side: tuple[float, float] | None, ends: tuple[float, float]) -> tuple[float, float] | None:
    """The part of a side that the axis shows; None if it shows nothing of it."""
    low, high = (max(side[0], ends[0]), min(side[1], ends[1])) if side else (0.0, 0.0)
    return (low, high) if low < high else None


