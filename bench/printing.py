"""Consoles and progress bars of rich that print text literally.

Prompts, labels, paths and errors contain square brackets and colons, which rich would interpret as styles, links and
emoji: "[/]" would raise an error and "[ocr, geneval]" would disappear. So text is never interpreted as markup, styles
are passed as arguments, and control characters are shown as escapes (bench/terminal.py).
"""

import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
from rich.text import Text

from bench.terminal import legible

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


def terminal(least_width: int = 0, stderr: bool = False, quiet: bool = False) -> Plain:
    """Return a literal console of at least `least_width` columns, so that tables written to files are not squeezed."""
    least = max(least_width, NARROWEST)
    width = least if Console(stderr=stderr).width < least else None
    return Plain(stderr=stderr, quiet=quiet, width=width)


def progress_bar(*columns: ProgressColumn, quiet: bool = False) -> Progress:
    """Return a progress bar on stderr with literal descriptions.

    `columns` follow the description, the bar and the percentage; the default is the remaining time.
    """
    shown = columns or (TimeRemainingColumn(),)
    console = terminal(stderr=True, quiet=quiet)
    return Progress(Description(), BarColumn(), TaskProgressColumn(), *shown, console=console)


def note(lines: list[str]) -> None:
    """Print notes for the user to stderr, from the first process only if several share a run."""
    if os.environ.get("RANK") in (None, "", "0"):
        for line in lines:
            print(f"note: {legible(line)}", file=sys.stderr)
