"""Consoles and progress bars of rich that print text literally.

Prompts, labels, paths and errors contain square brackets and colons, which rich would interpret as styles, links and
emoji: "[/]" would raise an error and "[ocr, geneval]" would disappear. So text is never interpreted as markup, styles
are passed as arguments, and control characters are shown as escapes (bench/terminal.py).
"""

import os
import sys
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
from rich.text import Text

from bench.terminal import legible, span

SAYS_EVERY_S = 60.0
"""Seconds between two lines of progress where the output is no terminal."""
NARROWEST = 60
"""Smallest width of a console in columns. COLUMNS may have any value, and rich shows nothing in a few columns."""


class Plain(Console):
    """A console that takes every string literally: lines, titles and table cells."""

    def __init__(self, **how: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """Render a string literally, with control characters shown as escapes."""
        return super().render_str(legible(text, lines=True), **how)


class Description(ProgressColumn):
    """The column of a progress bar with its description, printed literally."""

    def render(self, task: Task) -> Text:
        """Render the description of a bar."""
        return Text(legible(task.description), style="none")


class Lines(Progress):
    """Progress bars on a terminal; elsewhere, such as in a log, a line per unfinished bar every minute."""

    def start(self) -> None:
        """Start showing progress."""
        super().start()
        self._over = Event()
        if not (self.console.is_terminal or self.console.quiet or self.disable):
            Thread(target=self._say, args=(self._over,), daemon=True).start()

    def stop(self) -> None:
        """Stop; what was shown last remains."""
        if over := getattr(self, "_over", None):
            over.set()
        super().stop()

    def _say(self, over: Event) -> None:
        while not over.wait(SAYS_EVERY_S):
            for bar in self.tasks:
                if bar.started and bar.remaining != 0:
                    self.console.print(legible(_line(bar)), soft_wrap=True)


def _line(bar: Task) -> str:
    """A bar in words: what it is about, how far it is, and the time that it has taken and still takes."""
    left = bar.time_remaining
    spans = [f"{span(bar.elapsed or 0)} so far", *([f"{span(left)} left"] if left else [])]
    return f"{bar.description}: {bar.percentage:.0f}%, {', '.join(spans)}"


def terminal(least_width: int = 0, stderr: bool = False, quiet: bool = False) -> Plain:
    """Return a literal console of at least `least_width` columns, so that tables written to files are not squeezed."""
    least = max(least_width, NARROWEST)
    width = least if Console(stderr=stderr).width < least else None
    return Plain(stderr=stderr, quiet=quiet, width=width)


def progress_bar(*columns: ProgressColumn, quiet: bool = False) -> Progress:
    """Return a progress bar on stderr with literal descriptions; where that is no terminal, a line every minute.

    `columns` follow the description, the bar and the percentage; the default is the remaining time.
    """
    shown = columns or (TimeRemainingColumn(),)
    console = terminal(stderr=True, quiet=quiet)
    return Lines(Description(), BarColumn(), TaskProgressColumn(), *shown, console=console)


def note(lines: list[str]) -> None:
    """Print notes for the user to stderr, from the first process only if several share a run."""
    if os.environ.get("RANK") in (None, "", "0"):
        for line in lines:
            print(f"note: {legible(line)}", file=sys.stderr)
