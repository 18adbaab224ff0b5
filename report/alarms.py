"""Alarms of a pool: on which tasks a line's reward rose while a stricter measure or the diversity fell."""

from bench.analysis.alarms import joint_alarms
from bench.analysis.records import part_along
from report.lines import Pool
from report.table import Column, Row, Table


def alarms_table(pool: Pool, prefix: str) -> Table | None:
    """One row per line, task and measure at its end, over all seeds; None without any alarm."""
    table = Table(
        f"{prefix}alarms",
        f"Alarms: {pool.title}",
        "The trained reward rose (its 95% interval is above 0) from the named point to the end, while a stricter score "
        "or the known utility fell, or a diversity lost a quarter (p below 0.01, divided by the number of earlier "
        "points). Both are paired by seed and prompt. 0% of the budget is the base, at its best guidance unless every "
        "model's final scores are at its own best one.",
        [
            Column("line", "method"),
            Column("task", "task"),
            Column("measure", "measure that fell"),
            Column("since", "from", "share", "of budget"),
            Column("rise", "change of the reward", "change"),
            Column("fall", "change of the measure", "change"),
            Column("p", "p", "p"),
        ],
    )
    for line in pool.lines:
        summary = line.records[0].summary
        base = summary[part_along([summary])].get("base", {})
        for alarm in joint_alarms([record.evaluations for record in line.records], base):
            row: Row = {"line": line.label, "task": alarm.task, "measure": alarm.measure, "since": alarm.since}
            table.rows.append({**row, "rise": alarm.rise, "fall": alarm.fall, "p": alarm.fall.p})
    return table if table.rows else None
