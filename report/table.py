"""A table of a report: one set of numbers, shown as HTML, LaTeX (booktabs), Markdown and CSV.

Every number on the page comes from such a table through `number`, so the page and the CSV agree.
"""

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import pandas as pd
from markupsafe import Markup, escape

from bench.analysis.stats import Difference, Estimate, p_text

Kind = Literal["text", "score", "change", "share", "count", "p", "ratio"]
FORMATS = {
    "score": "{:.3f}",
    "change": "{:+.3f}",
    "share": "{:.0%}",
    "count": "{:,.0f}",
    "ratio": "{:.3g}",
}
NOTHING = "–"
LONG = 45
"""Number of rows that fit on a page of a paper."""
Value = str | int | float | None | Estimate | Difference
Row = dict[str, Value]
"""Values by column key."""
Held = TypeVar("Held", Estimate, Difference)


@dataclass(frozen=True)
class Column:
    """One column: a key for files, and a heading with a unit for readers."""

    key: str
    head: str
    kind: Kind = "text"
    unit: str = ""

    @property
    def title(self) -> str:
        """Heading with unit."""
        return f"{self.head} ({self.unit})" if self.unit else self.head


@dataclass
class Table:
    """Rows of values by column key; `strong` has the (row, key) of the cells printed in bold."""

    name: str
    title: str
    note: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)
    strong: set[tuple[int, str]] = field(default_factory=set)

    def frame(self) -> pd.DataFrame:
        """The table as plain columns; an interval becomes KEY, KEY_low and KEY_high."""
        flat = []
        for row in self.rows:
            plain: dict = {}
            for column in self.columns:
                value = row.get(column.key)
                if isinstance(value, Estimate | Difference):
                    plain[column.key] = value.value
                    plain[f"{column.key}_low"] = value.low
                    plain[f"{column.key}_high"] = value.high
                else:
                    plain[column.key] = value
            flat.append(plain)
        return pd.DataFrame(flat)

    def html(self) -> Markup:
        """The table as HTML that the page's script can sort."""
        heads = Markup("")
        for column in self.columns:
            kind = Markup(' class="n"') if column.kind != "text" else ""
            # A button, so that the keyboard reaches it too.
            head = Markup('<th scope="col"{}><button type="button">{}</button></th>')
            heads += head.format(kind, column.title)
        body = []
        for index, row in enumerate(self.rows):
            # Without Markup.format, which is slow for the hundred thousand cells of a thousand runs.
            cells = []
            for place, column in enumerate(self.columns):
                shown = number(row.get(column.key), column.kind)
                if (index, column.key) in self.strong:
                    shown = Markup("<strong>{}</strong>").format(shown)
                tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
                kind = ' class="n"' if column.kind != "text" else ""
                key = escape(_sort_key(row.get(column.key)))
                cells.append(f'<{tag}{scope}{kind} data-sort="{key}">{escape(shown)}</{tag}>')
            body.append(Markup(f"<tr>{''.join(cells)}</tr>"))
        return Markup(
            '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table class="sortable" data-table="{}">'
            "<caption><span>{}</span></caption><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
        ).format(self.title, self.name, self.title, heads, Markup("").join(body))

    def markdown(self) -> str:
        """The table as Markdown."""
        rows = [
            [c.title.replace("|", "\\|") for c in self.columns],
            ["---:" if c.kind != "text" else "---" for c in self.columns],
        ]
        for index, row in enumerate(self.rows):
            cells = []
            for column in self.columns:
                text = unmarked(plain(row.get(column.key), column.kind))
                # A bar would begin the next cell.
                text = text.replace("|", "\\|")
                cells.append(f"**{text}**" if (index, column.key) in self.strong else text)
            rows.append(cells)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"

    def latex(self) -> str:
        """The table in LaTeX (booktabs, at most the line's width; longtable if long), title and note as caption."""
        cells = []
        for index, row in enumerate(self.rows):
            texts = {}
            for column in self.columns:
                text = _tex(plain(row.get(column.key), column.kind))
                bold = (index, column.key) in self.strong
                texts[_tex(column.title)] = rf"\textbf{{{text}}}" if bold else text
            cells.append(texts)
        shown = pd.DataFrame(cells, columns=[_tex(c.title) for c in self.columns])
        formats = "".join("r" if c.kind != "text" else "l" for c in self.columns)
        long = len(self.rows) > LONG
        text = shown.style.hide(axis="index").to_latex(
            hrules=True,
            column_format=formats,
            caption=_tex(f"{self.title}. {self.note}"),
            label=f"tab:{self.name}",
            position=None if long else "t",
            environment="longtable" if long else None,
        )
        if long:
            return f"% needs \\usepackage{{booktabs,longtable}}\n{{\\scriptsize\n{text}}}\n"
        # Only a table that is too wide is scaled; a narrow one keeps the size of the text.
        begin, end = r"\begin{tabular}", r"\end{tabular}"
        fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" + "\n"
        text = text.replace(begin, fit + begin).replace(end, end + "}")
        return f"% needs \\usepackage{{booktabs,graphicx}}\n{text}"


def cell(row: Row, key: str, kind: type[Held]) -> Held:
    """The value of a cell that is known to be of type `kind`."""
    value = row[key]
    assert isinstance(value, kind), f"{key} is {value!r}"
    return value


def unmarked(text: Markup | str) -> str:
    """A text for Markdown: one line, without tags or anything that a browser would read as one."""
    raw = text.striptags() if isinstance(text, Markup) else text
    # The ampersand first, so that the entities themselves are not escaped again.
    return " ".join(raw.split()).replace("&", "&amp;").replace("<", "&lt;")


def slugs(texts: Iterable[str]) -> list[str]:
    """File names for texts from records: safe characters only, and no two alike on any file system."""
    found: list[str] = []
    for text in texts:
        name = first = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "unnamed"
        again = itertools.count(2)
        # Some file systems do not distinguish upper and lower case.
        while name.casefold() in {other.casefold() for other in found}:
            name = f"{first}-{next(again)}"
        found.append(name)
    return found


def plain(value: Value, kind: Kind) -> str:
    """A value as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, Estimate | Difference):
        if math.isnan(value.value):
            return NOTHING
        shown = _format(value.value, kind)
        # Without an interval its ends are NaN.
        if math.isnan(value.low):
            return shown
        return f"{shown} [{_format(value.low, kind)}, {_format(value.high, kind)}]"
    return _format(value, kind) if kind != "text" and not isinstance(value, str) else str(value)


def _format(value: float, kind: Kind) -> str:
    if math.isinf(value):
        if value < 0:
            return "−∞"
        # An infinite count is the NFE to a target that was not reached.
        return "never" if kind == "count" else "∞"
    if kind == "p":
        return p_text(value)
    return FORMATS[kind].format(value)


def number(value: Value, kind: Kind) -> Markup:
    """A value for the page; hovering over a number shows its exact value."""
    if isinstance(value, Estimate | Difference):
        if math.isnan(value.value):
            return Markup(NOTHING)
        shown = _data(value.value, kind)
        if not math.isnan(value.low):
            low, high = _data(value.low, kind), _data(value.high, kind)
            shown += Markup(f' <span class="interval">[{low}, {high}]</span>')
        return shown
    if value is None or isinstance(value, str) or kind == "text" or math.isnan(value):
        return escape(plain(value, kind))
    return _data(value, kind)


def _data(value: float, kind: Kind) -> Markup:
    exact, shown = escape(repr(value)), escape(_format(value, kind))
    return Markup(f'<data value="{exact}" title="{exact}">{shown}</data>')


def _sort_key(value: Value) -> str:
    if isinstance(value, Estimate | Difference):
        value = value.value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)


_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$", "∞": r"$\infty$",
    "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "-": "-{}",
}  # fmt: skip


_LATIN = 0x250
"""First character that pdflatex cannot set without further packages, apart from some punctuation."""


def _tex(text: str) -> str:
    """A line of LaTeX; what pdflatex cannot set (emoji, other scripts) becomes a question mark."""
    shown = ""
    for letter in " ".join(text.split()):
        latin = ord(letter) < _LATIN and letter.isprintable()
        known = latin or letter in _SPECIAL or letter in "—‘’“”…"
        shown += _SPECIAL.get(letter, letter) if known else "?"
    # At the beginning of a row a bracket would be read as an argument of the \\ before it.
    return "{}" + shown if shown.startswith("[") else shown
