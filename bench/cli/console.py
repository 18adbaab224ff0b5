"""Output of runs on the terminal: progress on stderr, the table of results on stdout."""

import shlex
from pathlib import Path

import numpy as np
from rich.progress import TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench.analysis.records import model_rows, recovered
from bench.analysis.stats import Estimate, estimate
from bench.printing import progress_bar, terminal
from bench.store.names import weights_folder
from bench.system.peak import gigabytes
from bench.training.loop import Progress


class Console:
    """A progress bar per run on stderr and the table at the end; use as a context manager.

    `quiet` hides the progress and messages, for processes other than the main one.
    """

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
        """Print a line above the progress bars."""
        self.progress.console.print(text, soft_wrap=True)

    def listen(self, label: str, update: Progress) -> None:
        """Advance the progress bar of the run with this label."""
        if label not in self.bars:
            self.bars[label] = self.progress.add_task(label, total=1.0)
        bar = self.bars[label]
        description = f"{label}: {update.doing or f'update {update.step}'}"
        # During an evaluation the bar stays where the last update left it.
        completed = None if update.doing else update.fraction
        self.progress.update(bar, completed=completed, description=description)

    def table(self, summaries: list[dict], sheet: Path | None = None) -> None:
        """Stop the progress bars and print the results, as `print_table`."""
        self.progress.stop()
        print_table(summaries, sheet)


def _share(share: Estimate) -> str:
    if np.isnan(share.value):
        return "teacher is not above the base"
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"


def print_next(summaries: list[dict], root: Path, full_finetuning: bool) -> None:
    """Print to stdout where the students are and what to do with them."""
    out = terminal(110)
    for summary in summaries:
        weights = weights_folder(root / summary["folder"], full_finetuning)
        out.print(f"student of seed {summary['seed']}: {weights}", soft_wrap=True)
    place = shlex.quote(str(root / summaries[0]["folder"]))
    out.print(f"next: bench report {shlex.quote(str(root))}, or bench export {place} -o FOLDER", soft_wrap=True)


def print_table(summaries: list[dict], sheet: Path | None = None) -> None:
    """Print scores by model and task, the gain recovered and the cost to stdout.

    `summaries` are those of one spec's seeds; `sheet` is the path of their contact sheet.
    """
    out = terminal(110)
    first = summaries[0]
    tasks = list(first["models"]["student"])
    seeds = ", ".join(str(s["seed"]) for s in summaries)
    title = f"{first['method']}: {first['split']} prompts, mean [95% interval], seeds {seeds}"
    if "guidance" in first:
        title += ", every model at its own best guidance on validation prompts"
    table = Table(title=title)
    table.add_column("model")
    for task in tasks:
        table.add_column(f"{task}: {first['models']['student'][task]['headline']}")
    teachers = [model for model in first["models"] if model not in ("base", "student")]
    for model in ["base", *teachers, "student"]:
        label = "base at its best guidance" if model == "base" else model
        style = "bold" if model == "student" else None
        scores = [estimate(*model_rows(summaries, model, task)) for task in tasks]
        table.add_row(label, *map(str, scores), style=style)
    for point in first.get("points", {}):
        scores = [estimate(*model_rows(summaries, point, task, among="points")) for task in tasks]
        table.add_row(f"student at {point}", *map(str, scores))
    for model, by_task in first.get("guidance", {}).items():
        scales = [sorted({s["guidance"][model][task] for s in summaries}) for task in by_task]
        table.add_row(f"guidance scales of {model}", *(", ".join(f"{scale:g}" for scale in own) for own in scales))
    shares = recovered(summaries)
    if shares:
        table.add_section()
        table.add_row("gain recovered", *(_share(shares[task]) for task in tasks))
    out.print(table)
    if shares:
        out.print(f"gain recovered over all tasks: {_share(shares['mean'])}")
    for summary in summaries:
        cost = summary["cost"]
        seconds = sorted(cost["seconds"].items())
        clocks = ", ".join(f"{name} {s:.0f} s" for name, s in seconds if name != "idle")
        nfe = cost["evaluations"].get("training", 0)  # records keep the older key for NFE
        peaks = cost.get("peak_bytes")  # older records have none
        peak = f"; peak memory {gigabytes(peaks):.3g} GB" if peaks else ""
        out.print(
            f"seed {summary['seed']}: {summary['updates']} updates, {nfe:,} training NFE; {clocks}{peak}",
            soft_wrap=True,
        )
    if sheet:
        out.print(f"contact sheet: {sheet}", soft_wrap=True)
