"""Consoles and progress bars of rich that print text literally.

Prompts, labels, paths and errors contain square brackets and colons, which rich would interpret as styles, links and
emoji: "[/]" would raise an error and "[ocr, geneval]" would disappear. So text is never interpreted as markup, styles
are passed as arguments, and control characters are shown as escapes (bench/terminal.py).
"""

import os
import sys
from collections.abc import Mapping
from threading import Event, Thread
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bench.terminal import legible, span

SAYS_EVERY_S = 60.0
"""Seconds between two lines of progress where the output is no terminal."""
NARROWEST = 60
"""Smallest width of a console in columns. COLUMNS may have any value, and rich shows nothing in a few columns."""


class Plain(Console):
    """A console that takes every string literally: lines, titles and table cells.

    With `in_parts` a table that is wider than the console is printed in several parts, each with its first column;
    otherwise rich folds its cells.
    """

    def __init__(self, in_parts: bool = False, **how: Any):
        self.in_parts = in_parts
        super().__init__(markup=False, emoji=False, highlight=False, **how)

    def render_str(self, text: str, **how: Any) -> Text:
        """Render a string literally, with control characters shown as escapes."""
        return super().render_str(legible(text, lines=True), **how)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print text or a table."""
        if self.in_parts and len(objects) == 1 and isinstance(objects[0], Table):
            for part in _parts(objects[0], self.width):
                super().print(part, **how)
        else:
            super().print(*objects, **how)


def _parts(table: Table, width: int) -> list[Table]:
    """The table, or tables with some of its columns each that fit the width if they can."""
    texts = [[column.header, *column.cells] for column in table.columns]
    # Two spaces and a line beside every cell, and one more line.
    needed = [3 + max(map(_wide, cells), default=0) for cells in texts]
    if sum(needed) + 1 <= width or len(needed) < 3:
        return [table]
    # The first column, whose cells are names, is repeated and may be folded.
    needed[0] = min(needed[0], width // 3)
    groups: list[list[int]] = [[]]
    for index in range(1, len(needed)):
        if groups[-1] and needed[0] + sum(needed[k] for k in (*groups[-1], index)) + 1 > width:
            groups.append([])
        groups[-1].append(index)
    found = []
    for group in groups:
        part = Table(title=table.title if group is groups[0] else None, show_header=table.show_header)
        for index in (0, *group):
            column = table.columns[index]
            most = needed[0] - 3 if index == 0 else None
            part.add_column(column.header, style=column.style, overflow="fold", justify=column.justify, max_width=most)
        cells = [list(table.columns[index].cells) for index in (0, *group)]
        for number, row in enumerate(zip(*cells)):
            part.add_row(*row, style=table.rows[number].style, end_section=table.rows[number].end_section)
        found.append(part)
    return found


def _wide(cell: Any) -> int:
    """Columns that a cell needs: its longest line."""
    return max((cell_len(line) for line in str(cell).splitlines()), default=0)


class Description(ProgressColumn):
    """The column of a progress bar with its description, printed literally."""

    def render(self, task: Task) -> Text:
        """Render the description of a bar."""
        return Text(legible(task.description), style="none")


class Lines(Progress):
    """Progress bars on a terminal; elsewhere, such as in a log, a line for each unfinished bar every minute.

    A full bar has a line as well if its description has changed in that minute: a run evaluates after its last update.
    """

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
        seen: dict[TaskID, str] = {}
        while not over.wait(SAYS_EVERY_S):
            for bar in self.tasks:
                changed = bar.description != seen.get(bar.id, bar.description)
                seen[bar.id] = bar.description
                if bar.started and (bar.remaining != 0 or changed):
                    self.console.print(legible(_line(bar)), soft_wrap=True)


def _line(bar: Task) -> str:
    """A bar in words: what it is about, how far it is, and the time that it has taken and still takes."""
    left = bar.time_remaining
    spans = [f"{span(bar.elapsed or 0)} so far", *([f"{span(left)} left"] if left else [])]
    return f"{bar.description}: {bar.percentage:.0f}%, {', '.join(spans)}"


def terminal(least_width: int = 0, stderr: bool = False, quiet: bool = False) -> Plain:
    """Return a literal console; elsewhere than on a terminal it has at least `least_width` columns.

    Tables that are written to files are not squeezed then. On a terminal they are printed in parts that fit.
    """
    usual = Console(stderr=stderr)
    least = NARROWEST if usual.is_terminal else max(least_width, NARROWEST)
    width = least if usual.width < least else None
    return Plain(in_parts=usual.is_terminal, stderr=stderr, quiet=quiet, width=width)


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


def print_published(title: str, numbers: Mapping[str, float]) -> None:
    """Print numbers as the task's authors report them (Task.published); nothing if there are none."""
    if numbers:
        shown = ", ".join(f"{name} {value:.2f}" for name, value in numbers.items())
        print(f"{title}, as published: {shown}")
