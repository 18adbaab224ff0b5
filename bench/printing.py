"""Terminals and progress bars of rich that print text as it is.

Prompts, labels, paths and errors hold square brackets and colons, which rich would read as styles, links and emoji:
"[/]" would end the command, "[ocr, geneval]" would vanish. So nothing is ever read as markup; styles are given as
arguments. Nor does a terminal obey what text holds: control characters are shown (bench/terminal.py).
"""

import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
from rich.text import Text

from bench.terminal import legible

NARROWEST = 60
"""Columns of every terminal: COLUMNS may be anything, and in a few columns nothing is shown."""


class Plain(Console):
    """A console to which every string is text: that of cells, titles and lines alike."""

    def __init__(self, **how: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(legible(text, lines=True), **how)


class Description(ProgressColumn):
    """What a bar is of."""

    def render(self, task: Task) -> Text:
        return Text(legible(task.description), style="none")


def terminal(least_width: int = 0, stderr: bool = False, quiet: bool = False) -> Plain:
    """A console that takes no markup, at least `least_width` columns wide: tables in files should not be squeezed."""
    least = max(least_width, NARROWEST)
    width = least if Console(stderr=stderr).width < least else None
    return Plain(stderr=stderr, quiet=quiet, width=width)


def progress_bar(*columns: ProgressColumn, quiet: bool = False) -> Progress:
    """A progress bar on stderr whose descriptions are plain text; `columns` come after description, bar and share."""
    shown = columns or (TimeRemainingColumn(),)
    console = terminal(stderr=True, quiet=quiet)
    return Progress(Description(), BarColumn(), TaskProgressColumn(), *shown, console=console)


def note(lines: list[str]) -> None:
    """Tell the user something before it happens, once where several processes share a run."""
    if os.environ.get("RANK") in (None, "", "0"):
        for line in lines:
            print(f"note: {legible(line)}", file=sys.stderr)
