"""Means over tasks of forgetting and transfer, and performance profiles."""

import pandas as pd

from bench.analysis.comparison import TARGET, targets, taught
from bench.analysis.profiles import costs, profiles
from bench.analysis.transfer import transfer
from report.figures import Figure, draw_curve, legend, room
from report.lines import Pool
from report.style import Look, is_column, logarithmic
from report.table import Column, Row, Table


def transfer_table(pool: Pool, prefix: str) -> Table | None:
    """Mean forgetting and transfer of every line; None if no line was evaluated before its end."""
    table = Table(
        f"{prefix}transfer",
        f"Forgetting and transfer: {pool.title}",
        "Means over tasks. Forgetting is the best earlier point minus the end (Chaudhry et al., arXiv 1801.10112, "
        "Eq. 3); negative while the tasks still gain, and biased upwards, because the best point is chosen by the same "
        "scores. Backward transfer of a cascade is the end minus the end of each task's own stage, and forward "
        "transfer is the score at the end of the stage before a task's own minus the base's at its best guidance "
        "(Lopez-Paz and Ranzato, arXiv 1706.08840, Eq. 3 and 4). In a cascade, forgetting leaves out the last task, "
        "since nothing comes after it. Intervals are 95%. A dash means no stages, or not evaluated.",
        [
            Column("line", "method"),
            Column("forgetting", "mean forgetting", "change"),
            Column("backward", "backward transfer", "change"),
            Column("forward", "forward transfer", "change"),
        ],
    )
    for line in pool.lines:
        found = transfer(line.records, pool.tasks, line.stage_ends)
        row: Row = {"line": line.label}
        means = {"forgetting": found.forgetting, "backward": found.backward, "forward": found.forward}
        row |= {name: mean for name, mean in means.items() if mean is not None and mean.value == mean.value}
        if len(row) > 1:
            table.rows.append(row)
    return table if table.rows else None


def profiles_table(pool: Pool, prefix: str) -> Table | None:
    """Performance profiles of the lines by training NFE; None without teachers, which set the targets."""
    shown = taught(line.records for line in pool.lines)
    # A line without training costs nothing, of which there is no multiple.
    lines = [line for line in pool.lines if (line.total_nfe if pool.whole else line.training_nfe) > 0]
    if len(lines) < 2 or not shown:
        return None
    reached = targets(shown, pool.tasks)
    solved = {
        line.label: costs(line.records, pool.tasks, reached, line.teacher_nfe if pool.whole else 0.0)
        for line in lines
    }
    rows: list[Row] = [
        {"line": label, "factor": factor, "solved": fraction}
        for label, profile in profiles(solved).items()
        for factor, fraction in profile
    ]
    if not rows:
        return None
    return Table(
        f"{prefix}profiles",
        f"Performance profiles: {pool.title}",
        "After Dolan and More (2002). A problem is a task with a seed that all lines have; it is solved when a run's "
        f"held-out score first reaches {TARGET:.0%} of the best teacher's at a recorded point. Solved within a factor: "
        "the fraction of problems that a line solves with at most so many times the training NFE of the line that is "
        "fastest there. Few points along training make few different factors.",
        [
            Column("line", "method"),
            Column("factor", "within a factor of", "ratio"),
            Column("solved", "solved", "share"),
        ],
        rows,
    )


def profiles_figure(frame: pd.DataFrame, look: dict[str, Look], name: str) -> Figure:
    """Fraction of problems solved within a factor of the fastest line's cost, one staircase per line."""
    lines = [line for line in look if (frame["line"] == line).any()]
    last = 1.1 * float(frame["factor"].max())

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        figure, axes = plt.subplots(figsize=(width, 2.6 + room(lines, narrow)))
        for line in lines:
            points = frame[frame["line"] == line]
            said = [f"{line}: {row['solved']!r} within {row['factor']!r}" for _, row in points.iterrows()]
            draw_curve(axes, points["factor"], points["solved"], look[line], said)
            axes.lines[-1].set_drawstyle("steps-post")
        if last > 20:
            logarithmic(axes, "x")
        axes.set(xlabel="factor of the fastest line's training NFE", ylabel="problems solved", xlim=(0.95, last))
        axes.set(ylim=(-0.03, 1.03))
        legend(figure, axes, lines, narrow)
        return figure

    return Figure(
        name,
        "Performance profiles: at the left how often a line is the fastest, at the right how often it gets there.",
        f"Fraction of problems solved by {len(lines)} lines, by factor of the fastest line's cost.",
        draw,
    )
