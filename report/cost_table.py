"""What lines cost: NFE, weighted NFE, seconds and memory, and when they reach the target."""

import math
from functools import cache

import numpy as np

from bench.analysis.comparison import TARGET, Standing, reached_between, targets
from bench.analysis.comparison import taught as with_teachers
from bench.analysis.records import Record
from bench.backbones.meter import BACKWARD
from bench.config.resolve import describe
from bench.registry import registered
from bench.system.peak import gigabytes
from report.lines import Pool
from report.table import Column, Row, Table


def cost(pool: Pool, found: dict[str, Standing], prefix: str) -> Table:
    """The cost of every line with and without its teachers, and when it reached the target."""
    table = Table(
        f"{prefix}cost",
        f"Cost: {pool.title}",
        "NFE per run: a forward pass counts 1, a backward pass 2, and guidance doubles both. The 2 is a convention of "
        "this budget, not a measurement: a backward pass that trains only adapters costs less. With teachers: the full "
        "cost of the teachers is added, as if they were trained for this student only; a dash means that their cost is "
        f"unknown. To target: training NFE until the mean over seeds reaches {TARGET:.0%} of the best teacher in every "
        "task at a recorded point, including the teachers' cost where the budget does. Seeds at target: seeds of the "
        "line that reach it individually. A dash means that there are no teachers in these runs. Seconds depend on the "
        "machine and its load. Peak memory is that of the GPU, or without one of the whole process.",
        [
            Column("line", "method"),
            Column("training", "training", "count", "NFE"),
            Column("with_teachers", "with teachers", "count", "NFE"),
            Column("to_target", "to target", "count", "NFE"),
            Column("reaching", "seeds at target", "count"),
            Column("seeds", "of seeds", "count"),
            Column("seconds", "training and scoring", "count", "s"),
        ],
    )
    for line in pool.lines:
        taught = line.teacher_nfe if pool.whole else 0.0
        when = found[line.label].time_to_target
        # NaN means that there is no target, infinity that it was not reached.
        reaching = None if math.isnan(when) else found[line.label].seeds_at_target
        table.rows.append(
            {
                "line": line.label,
                "training": line.training_nfe,
                "weighted": weighted(line.records),
                "with_teachers": line.total_nfe,
                "to_target": when + taught,
                "reaching": reaching,
                "seeds": len(line.records),
                "seconds": seconds(line.records),
                "peak": peak_gb(line.records),
            }
        )
    if any(row["weighted"] for row in table.rows):
        table.columns.insert(2, Column("weighted", "training, weighted", "count", "forward passes"))
        counted = _backward_cost(pool.lines[0].records[0].spec["backbone"])
        table.note += (
            f" Weighted: a backward pass counts not as {BACKWARD:g} but as what was measured through an adapter of "
            f"this backbone, {counted:g} forward passes."
        )
    if any(row["peak"] for row in table.rows):
        table.columns.append(Column("peak", "peak memory of an update", "ratio", "GB"))
    return table


def weighted(records: list[Record]) -> float | None:
    """Training cost in forward passes, mean over runs, with the measured cost of a backward pass.

    None where that cost is not known, or the records do not count backward passes.
    """
    if records[0].spec.get("full_finetuning"):
        return None
    cost = _backward_cost(records[0].spec["backbone"])
    known = [record.summary["cost"] for record in records if "backward" in record.summary["cost"]]
    if cost is None or len(known) < len(records):
        return None
    spent = [found["evaluations"].get("training", 0) for found in known]
    backward = [found["backward"].get("training", 0) for found in known]
    return float(np.mean([nfe - (BACKWARD - cost) * passes for nfe, passes in zip(spent, backward)]))


@cache
def _backward_cost(backbone: str) -> float | None:
    """What a backward pass costs on a registered backbone; None elsewhere, whose description may need its files."""
    return describe(backbone).backward_cost if backbone in registered("backbone") else None


def until_target(pool: Pool, prefix: str) -> Table | None:
    """For every run, the recorded points between which it first reaches the target; None without teachers."""
    shown = with_teachers(line.records for line in pool.lines)
    if not shown:
        return None
    table = Table(
        f"{prefix}until-target",
        f"Time to target by seed: {pool.title}",
        f"A run reaches {TARGET:.0%} of the best teacher in every task somewhere between two recorded points: after "
        "the first column and by the second, in training NFE, with the teachers' where the budget counts them. Never: "
        "at no recorded point.",
        [
            Column("line", "method"),
            Column("seed", "seed", "text"),
            Column("after", "not yet at", "count", "NFE"),
            Column("by", "reached by", "count", "NFE"),
        ],
    )
    wanted = targets(shown, pool.tasks)
    for line in pool.lines:
        for record in line.records:
            after, by = reached_between(record, pool.tasks, wanted)
            taught = line.teacher_nfe if pool.whole else 0.0
            row: Row = {"line": line.label, "seed": str(record.summary["seed"])}
            table.rows.append(row | {"after": after + taught, "by": by + taught})
    return table


def peak_gb(records: list[Record]) -> float | None:
    """The most memory that an update of any run used, of the GPU or else of the process; None in older records."""
    known = [peak for record in records if (peak := record.summary["cost"].get("peak_bytes"))]
    return max(map(gigabytes, known), default=None)


def seconds(records: list[Record]) -> float:
    """Seconds of training and scoring, averaged over runs."""
    clocks = [r.summary["cost"]["seconds"] for r in records]
    spent = [clock.get("training", 0) + clock.get("scoring", 0) for clock in clocks]
    return float(np.mean(spent))
