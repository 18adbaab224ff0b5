"""Output of `bench status` and `bench logs`."""

import time
from pathlib import Path

from bench.jobs.launches import Job, Launch
from bench.jobs.scheduler import states
from bench.jobs.status import LOG_TAIL, ORDER, StatusRow, as_shown, latest_job, log_lines, survey
from bench.terminal import legible, span

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


def logs(root: Path, name: str, follow: bool = False) -> None:
    """Print the last lines of the output of the latest job that `name` matches. Raises UsageError if none does.

    With `follow`, what the job writes is printed as it comes, until it is neither pending nor running.
    """
    launch, job = latest_job(root, name)
    if follow:
        _follow(root, launch, job)
        return
    for kind in ("out", "err"):
        path = launch.log(job, kind)
        print(f"==> {legible(str(path))}")
        if path.is_file():
            print("\n".join(log_lines(path)[-LINES:]))


def _follow(root: Path, launch: Launch, job: Job) -> None:
    """Print the end of a job's output, and then what it writes until it has ended."""
    tails = {kind: Tail(launch.log(job, kind)) for kind in ("out", "err")}
    shown = ""
    while True:
        # Asked before reading, so that what a job writes last is read once more after its end.
        answers = states([launch])
        state = (answers or {}).get((launch.name, job.label))
        going_on = answers is None or (state is not None and state.active)
        for kind, tail in tails.items():
            lines = tail.more(whole=going_on)
            if lines and kind != shown:
                print(f"==> {legible(str(launch.log(job, kind)))}")
                shown = kind
            for line in lines:
                print(line, flush=True)
        if not going_on:
            return
        time.sleep(REFRESH_S)


class Tail:
    """Reads a growing log, from its last lines on."""

    def __init__(self, path: Path):
        self.path = path
        self.at: int | None = None
        """Bytes that have been read; None before the first time."""

    def more(self, whole: bool = True) -> list[str]:
        """The lines that were added; with `whole`, one that is still being written is left for later."""
        if not self.path.is_file():
            return []
        first, size = self.at is None, self.path.stat().st_size
        begin = max(0, size - LOG_TAIL) if first else self.at or 0
        with self.path.open("rb") as file:
            file.seek(begin)
            added = file.read()
        if whole:
            added = added[: added.rfind(b"\n") + 1]
        self.at = begin + len(added)
        lines = as_shown(added) if added else []
        return lines[-LINES:] if first else lines
