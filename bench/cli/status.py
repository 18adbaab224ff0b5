"""Output of `bench status` and `bench logs`."""

import time
from pathlib import Path

from bench.jobs.status import ORDER, StatusRow, latest_job, log_lines, survey
from bench.terminal import legible

REFRESH_S = 2.0
"""Seconds between two refreshes of `bench status --watch`."""
LINES = 100
"""Number of lines of each log that `bench logs` prints."""
COLOURS = {
    "running": "cyan",
    "pending": "yellow",
    "damaged": "bold red",
    "failed": "red",
    "stopped": "magenta",
    "done": "green",
}


def show(root: Path, watch: bool) -> None:
    """Print the table of runs; with `watch`, refresh it until nothing is pending or running."""
    from bench.printing import terminal

    console = terminal()
    if not watch:
        console.print(table(survey(root)))
        return
    from rich.live import Live

    lines = survey(root)
    with Live(table(lines), console=console, auto_refresh=False) as live:
        while any(line.state in ("running", "pending") for line in lines):
            time.sleep(REFRESH_S)
            lines = survey(root)
            live.update(table(lines), refresh=True)


def table(lines: list[StatusRow]):
    """A rich table with one row per run, and the number of runs in each state as its title."""
    from rich.table import Table
    from rich.text import Text

    counts = {state: sum(line.state == state for line in lines) for state in ORDER}
    title = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    shown = Table(title=title or "no runs yet")
    for head in ("run", "state", "progress", "left", "where", "note"):
        shown.add_column(head, overflow="fold")
    for line in lines:
        fraction = "" if line.fraction is None else f"{line.fraction:.0%}"
        left = "" if line.left_s is None else span(line.left_s)
        texts = (line.name, line.state, fraction, left, line.where, line.note)
        cells = [Text(legible(text)) for text in texts]
        cells[1].style = COLOURS[line.state]
        shown.add_row(*cells)
    return shown


def span(seconds: float) -> str:
    """A duration as hours, minutes and seconds: 3700 -> "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def logs(root: Path, name: str) -> None:
    """Print the last lines of the output of the latest job that `name` matches. Raises UsageError if none does."""
    launch, job = latest_job(root, name)
    for kind in ("out", "err"):
        path = launch.log(job, kind)
        print(f"==> {legible(str(path))}")
        if path.is_file():
            print("\n".join(log_lines(path)[-LINES:]))
