"""Which lines figures show in colour: the reference and the two that matter most; the others are grey."""

from dataclasses import replace

from bench.analysis.comparison import PRIMARY_FAMILY
from bench.analysis.stats import Estimate
from bench.system.drawing import imported
from report.lines import Line, Pool
from report.style import GREY, MOST, Look, looks
from report.table import cell
from report.tables import PoolTables

COLOURS = (0, 3, 2, 1, 4, 9, 5, 6)
"""Indices into seaborn's colour-blind palette, in the order in which lines get them."""
FEW = 3
"""Largest number of lines of a pool in colour."""


def highlight(made: list[tuple[Pool, PoolTables]]) -> None:
    """Choose the lines in colour. A line has one colour at all budgets."""
    taken: dict[str, int] = {}
    for pool, tables in made:
        settings = {line.label: line.settings for line in pool.lines}
        for label in _foremost(pool, tables):
            colour = COLOURS[len(taken) % len(COLOURS)]
            tables.colours[label] = taken.setdefault(settings[label], colour)


def _foremost(pool: Pool, tables: PoolTables) -> list[str]:
    """The reference, then the best of the paper's comparisons, then the best of the others."""
    rows = tables.scores.rows[: len(pool.lines)]

    def rank(row: dict) -> tuple[bool, bool, float]:
        mean = cell(row, "mean", Estimate).value
        return row["line"] != tables.reference, row.get("family") != PRIMARY_FAMILY, -mean

    return [str(row["line"]) for row in sorted(rows, key=rank)[:FEW]]


def looks_of(pool: Pool, tables: PoolTables, lines: list[Line]) -> dict[str, Look]:
    """The style of each line in every figure of a pool. All lines get a style; only the best MOST are drawn."""
    # Before seaborn imports matplotlib with its defaults.
    imported()
    import seaborn

    palette = seaborn.color_palette("colorblind", 10)
    colours = {label: palette[index] for label, index in tables.colours.items()}
    look = {
        label: replace(style, colour=colours.get(label, GREY), matters=label in colours)
        for label, style in looks([(line.label, line.method) for line in pool.lines]).items()
    }
    means = {}
    for row in tables.scores.rows:
        if row.get("mean"):
            means[row["line"]] = cell(row, "mean", Estimate).value

    # Lines in colour are drawn however low their means, because the differences refer to one of them.
    def rank(line: Line) -> tuple[bool, float]:
        return not look[line.label].matters, -means.get(line.label, 0.0)

    ranked = sorted(lines, key=rank)
    kept = {line.label for line in ranked[:MOST]}
    return {line.label: look[line.label] for line in lines if line.label in kept}
