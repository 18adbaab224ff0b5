"""The report's first screen: one sentence a question, and two pictures."""

from collections import Counter
from dataclasses import dataclass

from markupsafe import Markup

from bench.analysis.stats import Difference, Estimate
from report.answer import verdicts
from report.cost_front import cost_figure, spent
from report.forest import forest_figure, groups
from report.lines import Pool
from report.page import Report, Section
from report.table import Column, Row, Table, cell, number
from report.tables import PoolTables, levels

NAMED = 3
"""Largest number of lines that a sentence of the first screen names."""


@dataclass(frozen=True)
class Beside:
    """What other sections found, for the first one."""

    transfer: dict[str, Table | None]
    """Pool's title -> mean forgetting of its lines."""
    alarms: dict[str, Table | None]
    """Pool's title -> alarms of its lines."""
    below: dict[str, Table | None]
    """Pool's title -> tags on which its lines end below the base."""
    claims: Table
    """The paper's claims with verdicts."""


def key_results(pools: list[tuple[Pool, PoolTables]]) -> Table:
    """One row per budget: the best line, and how many lines differ from the reference."""
    table = Table(
        "key-results",
        "Key results by budget",
        "Compared with the reference line at a level of 5% after Holm's correction within a family (see the tables of "
        "scores). Equivalent lines are those that two one-sided tests place within a tenth of the teachers' mean gain; "
        "a line may be below and yet equivalent, and counts as below. Undecided: neither.",
        [
            Column("where", "where"),
            Column("budget", "budget", "count", "NFE per run"),
            Column("counted", "counted"),
            Column("fewest_seeds", "fewest seeds", "count"),
            Column("most_seeds", "most seeds", "count"),
            Column("best", "highest mean score"),
            Column("mean", "its mean score", "score"),
            Column("reference", "reference"),
            Column("tied", "lines that share it", "count"),
            Column("others", "other lines", "count"),
            Column("above", "above the reference", "count"),
            Column("below", "below", "count"),
            Column("equal", "equivalent", "count"),
            Column("undecided", "undecided", "count"),
            Column("same", "identical", "count"),
            Column("untested", "not tested", "count"),
        ],
    )
    for pool, tables in pools:
        if len(pool.lines) < 2:
            continue
        rows = tables.scores.rows[: len(pool.lines)]
        highest = max(cell(row, "mean", Estimate).value for row in rows)
        # Lines that tie exactly are all named.
        best = [row for row in rows if cell(row, "mean", Estimate).value == highest]
        counts = tables.overview.rows[0]
        row: Row = {"where": pool.place, "budget": pool.budget, "best": ", ".join(str(r["line"]) for r in best)}
        row |= {"mean": best[0]["mean"], "other": _only(rows, tables.reference), "tied": len(best)}
        row |= {"counted": "training and teachers" if pool.whole else "training"}
        spent = {line.total_nfe if pool.whole else line.training_nfe for line in pool.lines}
        row["exact"] = spent - {0} <= {pool.budget}
        row |= {key: counts[key] for key in ("fewest_seeds", "most_seeds")}
        row |= {"reference": tables.reference, "others": len(rows) - 1}
        table.rows.append({**row, **{kind: len(found) for kind, found in verdicts(rows, tables.reference).items()}})
    return table


def first_screen(
    report: Report, section: Section, made: list[tuple[Pool, PoolTables]], key: Table, beside: Beside, name: str
) -> None:
    """Add the sentences and pictures of one place.

    `made` are its pools that have lines, the largest first; `key` is of all places.
    """
    place = made[0][0].place
    said = [_said(row) for row in key.rows if row["where"] == place]
    said += _forgotten([(pool, table) for pool, _ in made if (table := beside.transfer.get(pool.title))])
    said += [_alarmed(pool, table) for pool, _ in made if (table := beside.alarms.get(pool.title))]
    said += [_fell(pool, table) for pool, _ in made if (table := beside.below.get(pool.title))]
    if own := [row for row in beside.claims.rows if row["where"] == place]:
        said.append(_claimed(own))
    if said:
        section.points(Markup(""), said)
    found = groups(made)
    points = spent(made)
    report.show(section, forest_figure(found, f"{name}differences") if found else None)
    if len(points) > 1:
        beside_lines = levels(made[0][1].scores, ("mean",))
        report.show(section, cost_figure(points, beside_lines, f"{name}cost-front"))


def _said(row: Row) -> Markup:
    """Who is best at a budget, and how many lines are above, below and equivalent."""
    seeds = number(row["fewest_seeds"], "count")
    if row["most_seeds"] != row["fewest_seeds"]:
        seeds = Markup("{} to {}").format(seeds, number(row["most_seeds"], "count"))
    counted = " including the teachers' training" if row["counted"] != "training" else " of training"
    # Budgets end on whole updates, so that lines that are compared may differ a little.
    about = "" if row["exact"] else "about "
    where = Markup("At {}{} NFE per run{}").format(about, number(row["budget"], "count"), counted)
    text = Markup("{} ({} {}), <strong>{}</strong> {} the highest mean score, {}. ").format(
        where if row["budget"] else "Without training",
        seeds,
        "seed" if row["most_seeds"] == 1 else "seeds",
        row["best"],
        "has" if row["tied"] == 1 else "share",
        number(row["mean"], "score"),
    )
    words = {
        "above": "above it", "below": "below it", "equal": "equivalent", "undecided": "undecided",
        "same": "identical on every prompt", "untested": "not tested",
    }  # fmt: skip
    parts = [
        Markup("{} {}").format(number(row[kind], "count"), told) for kind, told in words.items() if row[kind]
    ]
    if row["others"] == 1:
        (kind,) = (kind for kind in words if row[kind])
        words = {
            "above": "is above", "below": "is below", "equal": "is equivalent to", "untested": "was not tested against",
            "undecided": "is neither distinguished from nor equivalent to", "same": "has the same scores as",
        }  # fmt: skip
        return text + Markup("{} {} {}.").format(row["other"], words[kind], row["reference"])
    lead = Markup("Of the {} lines other than {}: ")
    return text + lead.format(number(row["others"], "count"), row["reference"]) + Markup(", ").join(parts) + "."


def _only(rows: list[Row], reference: str) -> str | None:
    """The line beside the reference, if there is just one."""
    others = [str(row["line"]) for row in rows if row["line"] != reference]
    return others[0] if len(others) == 1 else None


def _forgotten(tables: list[tuple[Pool, Table]]) -> list[Markup]:
    """The line with the largest mean forgetting at any budget, and whether it is distinguished from 0."""
    rows = [(pool, row) for pool, table in tables for row in table.rows]
    found = [(pool, row) for pool, row in rows if isinstance(row.get("forgetting"), Difference)]
    if not found:
        return []

    def rank(of: tuple[Pool, Row]) -> tuple[bool, float]:
        drop = cell(of[1], "forgetting", Difference)
        return drop.low > 0, drop.value

    pool, worst = max(found, key=rank)
    drop, told = cell(worst, "forgetting", Difference), number(worst["forgetting"], "change")
    where = Markup("{} at {} NFE").format(worst["line"], number(pool.budget, "count"))
    said = (
        "No line ends distinguishably below its best earlier points; forgetting is largest for {}, {} on average over "
        "tasks."
    )
    if drop.low > 0:
        said = "Most is forgotten by {}: it ends {} below its best earlier points, on average over tasks."
    return [Markup(said).format(where, told)]


def _alarmed(pool: Pool, table: Table) -> Markup:
    """Which lines of a budget raised alarms, and on which tasks."""
    lines = list(dict.fromkeys(str(row["line"]) for row in table.rows))
    more = len(lines) - NAMED
    names = ", ".join(lines[:NAMED]) + (f" and {more} more" if more > 0 else "")
    tasks = ", ".join(dict.fromkeys(str(row["task"]) for row in table.rows))
    said = "At {} NFE the reward rose while a stricter score, the known utility or the diversity fell, on {}: {}."
    return Markup(said).format(number(pool.budget, "count"), tasks, names)


def _fell(pool: Pool, table: Table) -> Markup:
    """On which tags lines of a budget end below the base."""
    tags: dict[str, list[str]] = {}
    for row in table.rows:
        tags.setdefault(str(row["line"]), []).append(f"{row['task']} {row['tag']}")
    more = len(tags) - NAMED
    lines = "; ".join(f"{line} on {', '.join(found)}" for line, found in list(tags.items())[:NAMED])
    said = "At {} NFE lines end below the base on some tags: {}{}."
    return Markup(said).format(number(pool.budget, "count"), lines, f"; and {more} more" if more > 0 else "")


def _claimed(rows: list[Row]) -> Markup:
    """How many of the paper's claims hold."""
    counts = Counter(str(row["verdict"]) for row in rows)
    parts = ", ".join(f"“{verdict}” for {count}" for verdict, count in counts.most_common())
    said = 'The paper\'s <a href="#claims-of-the-paper">claims</a> ({} of them): {}.'
    return Markup(said).format(len(rows), parts)

