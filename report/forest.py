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
    left_out: int
    """Number of lines that only the table has."""


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


def forest_figure(found: list[Group], name: str, own_title: str = "") -> Figure:
    """Differences of mean scores by group; points left of the line at 0 are below the reference.

    `own_title` replaces the one about lines of equal cost.
    """

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        letters, size = (22, 6) if narrow else (60, 7)
        # A title takes the place of a line.
        labels = [[broken(line, letters, ",=") for line in group.lines] for group in found]
        heights = [[0.08 + 0.12 * (label.count("\n") + 1) for label in own] for own in labels]
        total = sum(sum(own) + 0.34 for own in heights) + 0.35
        figure, axes = plt.subplots(figsize=(width, total))
        axes.axvline(0, color="0.4", linewidth=0.8)
        # Its x is 0 at the left edge of the axes, its y that of the data.
        beside = axes.get_yaxis_transform()
        places, texts, y = [], [], 0.0
        for group, own, tall in zip(found, labels, heights):
            y += 0.26
            head = broken(group.title, 38 if narrow else 110, ",")
            y += 0.11 * head.count("\n")
            axes.text(0, y - 0.1, head, fontweight="bold", fontsize=size, va="center", transform=beside)
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
        axes.set(yticks=places, ylim=(y + 0.02, 0), xlabel="difference of mean scores, 95% interval")
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
    look = {line: group.looks.get(line, PLAIN) for group in found for line in group.lines}
    return Figure(name, title, alt, draw, responsive=True, chart=lambda: forest_chart(rows, look))


