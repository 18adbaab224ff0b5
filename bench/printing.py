"""Terminals and progress bars of rich that print text as it is.

Prompts, labels, paths and errors hold square brackets and colons, which rich would read as styles, links and emoji:
"[/]" would end the command, "[ocr, geneval]" would vanish. So nothing is ever read as markup; styles are given as
arguments.
"""

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn


def terminal(least_width: int = 0, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that takes no markup, at least `least_width` columns wide: tables in files should not be squeezed."""
    width = max(least_width, Console().width) if least_width else None
    return Console(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False, highlight=False)


def progress_bar(*columns: ProgressColumn, quiet: bool = False) -> Progress:
    """A progress bar on stderr whose descriptions are plain text; `columns` come after description, bar and share."""
    shown = columns or (TimeRemainingColumn(),)
    label = TextColumn("{task.description}", markup=False)
    return Progress(label, BarColumn(), TaskProgressColumn(), *shown, console=terminal(stderr=True, quiet=quiet))


def note(lines: list[str]) -> None:
    """Tell the user something before it happens, once where several processes share a run."""
    if int(os.environ.get("RANK", "0")) == 0:
        for line in lines:
            print(f"note: {line}", file=sys.stderr)
