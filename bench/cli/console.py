"""Talking to the person at the terminal: progress on stderr, the result table on stdout."""

from pathlib import Path

import numpy as np
from rich.progress import TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.analysis.records import model_rows, recovered
from bench.analysis.stats import Estimate, estimate
from bench.printing import progress_bar, terminal
from bench.training.loop import Progress


class Console:
    """A progress bar while runs go on, and the table at the end; `quiet` says nothing at all."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    def __enter__(self) -> "Console":
        columns = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        self.progress = progress_bar(*columns, quiet=self.quiet)
        self.bars: dict[str, TaskID] = {}
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        self.progress.console.print(text, soft_wrap=True)

    def listen(self, label: str, update: Progress) -> None:
        """Advance the bar of a run."""
        if label not in self.bars:
            self.bars[label] = self.progress.add_task(label, total=1.0)
        self.progress.update(self.bars[label], completed=update.fraction, description=f"{label}: update {update.step}")

    def table(self, summaries: list[dict], sheet: Path | None = None) -> None:
        """Models by tasks with intervals, the share of the teachers' gain, cost, and where the pictures are."""
        self.progress.stop()
        print_table(summaries, sheet)


def _share(share: Estimate) -> str:
    if np.isnan(share.value):
        return "teacher is not above the base"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def print_table(summaries: list[dict], sheet: Path | None = None) -> None:
    """Print the table of one or several seeds of a run to stdout."""
    out = terminal(110)
    first = summaries[0]
    tasks = list(first["models"]["student"])
    seeds = ", ".join(str(s["seed"]) for s in summaries)
    table = Table(title=f"{first['method']}: {first['split']} prompts, mean [95% interval], seeds {seeds}")
    table.add_column("model")
    for task in tasks:
        table.add_column(f"{task}: {first['models']['student'][task]['headline']}")
    order = ["base", *(m for m in first["models"] if m not in ("base", "student")), "student"]
    for model in order:
        label = "base at its best guidance" if model == "base" else model
        style = "bold" if model == "student" else None
        table.add_row(label, *(str(estimate(*model_rows(summaries, model, task))) for task in tasks), style=style)
    shares = recovered(summaries)
    if shares:
        table.add_section()
        table.add_row("share of the teacher's gain", *(_share(shares[task]) for task in tasks))
    out.print(table)
    if shares:
        out.print(f"share of the teachers' mean gain recovered: {_share(shares['mean'])}")
    for summary in summaries:
        cost = summary["cost"]
        clocks = ", ".join(f"{name} {s:.0f} s" for name, s in sorted(cost["seconds"].items()) if name != "idle")
        nfe = cost["evaluations"].get("training", 0)
        out.print(
            f"seed {summary['seed']}: {summary['updates']} updates, {nfe:,} training NFE; {clocks}",
            soft_wrap=True,
        )
    if sheet:
        out.print(f"contact sheet: {sheet}", soft_wrap=True)
