"""Two sets of runs of the same lines, from two commits or machines: which differences exceed noise."""

import numpy as np
from markupsafe import Markup

from bench.analysis.comparison import against
from bench.analysis.records import Record, model_rows
from bench.analysis.stats import Difference, holm
from report.claims import ALPHA
from report.evidence import Evidence
from report.lines import Line, Pool, pools, titled
from report.page import Report, Section
from report.table import Column, Table, cell, number
from report.tables import seconds, student_score

VERDICTS = MOVED, SAME, OPEN = "changed", "identical", "no significant change"


def difference(before: Evidence, after: Evidence) -> Report:
    """Second set minus first set for every line, paired by seed and prompt."""
    report, section = Report(), Section("What changed")
    table = Table(
        "difference",
        "Second set minus first, by line and task",
        "Paired by seed and prompt over the seeds that both sets have. Identical: every image has the same score. "
        "Changed: p below 0.05 after Holm's correction over the table. One shared seed says nothing about the method.",
        [
            Column("line", "line"),
            Column("task", "task"),
            Column("seeds", "shared seeds", "count"),
            Column("first", "first", "score"),
            Column("second", "second", "score"),
            Column("change", "change", "change"),
            Column("p", "p (Holm)", "p"),
            Column("verdict", "verdict"),
            Column("seconds", "seconds, second / first", "ratio"),
        ],
    )
    firsts, others = (_by_identity(evidence) for evidence in (before, after))
    apart = []
    for key, (pool, line) in firsts.items():
        if key in others:
            rows = _rows(pool, line, others[key][1])
            table.rows += rows
            apart += [] if rows else [line.label]
    # One family over the whole table: the question is whether anything changed.
    changes = [cell(row, "change", Difference) for row in table.rows]
    adjusted = holm([change.p for change in changes])
    for row, p in zip(table.rows, adjusted):
        row["p"] = p
        row["verdict"] = row["verdict"] or (MOVED if p < ALPHA else OPEN)
    counts = Table(
        "verdicts",
        "Verdicts",
        "Lines and tasks in both sets.",
        [Column("verdict", "verdict"), Column("count", "lines and tasks", "count")],
    )
    said = []
    for verdict in VERDICTS:
        count = sum(row["verdict"] == verdict for row in table.rows)
        counts.rows.append({"verdict": verdict, "count": count})
        said.append(Markup("{}: {}").format(verdict, number(count, "count")))
    section.say(Markup("Lines and tasks in both sets: {}.").format(Markup(", ").join(said)), "answer")
    for name, mine, theirs in (("first", firsts, others), ("second", others, firsts)):
        only = sorted(
            f"{line.label} at {line.training_nfe:,.0f} training NFE"
            for key, (_, line) in mine.items()
            if key not in theirs
        )
        if only:
            section.say(f"Only in the {name} set: {'; '.join(only)}.", "warn")
    if apart:
        section.say(f"In both sets, but without a shared seed: {', '.join(apart)}.", "warn")
    for name, evidence in (("first", before), ("second", after)):
        for problem in (*evidence.unfinished(), *evidence.problems):
            section.say(f"In the {name} set: {problem}.", "warn")
    report.show(section, table)
    report.show(section, counts, folded=True)
    report.sections = [section]
    return report


def _by_identity(evidence: Evidence) -> dict[tuple, tuple[Pool, Line]]:
    """Pool and settings -> line."""
    # Pools that count the teachers repeat lines of the other pools.
    own = [titled(pool) for pool in pools(evidence) if not pool.whole]
    return {(pool.world, line.identity): (pool, line) for pool in own for line in pool.lines}


def _rows(pool: Pool, first: Line, second: Line) -> list[dict]:
    first_seeds = {_seed(record) for record in first.records}
    second_seeds = {_seed(record) for record in second.records}
    common = sorted(first_seeds & second_seeds)
    if not common:
        return []
    pairs = [[r for r in line.records if _seed(r) in common] for line in (first, second)]
    clocks = [seconds(records) for records in pairs]
    rows = []
    for task in pool.tasks:
        values = [model_rows([r.summary for r in records], "student", task)[0] for records in pairs]
        change = against(pairs[1], pairs[0], (task,))
        rows.append(
            {
                "line": first.label,
                "task": task,
                "seeds": len(common),
                "first": student_score(pairs[0], task),
                "second": student_score(pairs[1], task),
                "change": change,
                "verdict": SAME if np.array_equal(values[0], values[1]) else "",
                "seconds": clocks[1] / clocks[0] if clocks[0] else None,
            }
        )
    return rows


def _seed(record: Record) -> int:
    return record.summary["seed"]
