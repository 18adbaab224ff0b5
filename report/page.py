"""The report as one HTML file, and its parts for papers: tables, figures, report.md."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from bench.errors import BenchError, UsageError, one_line
from bench.system.files import read_lines, write_atomic
from bench.system.places import check_writable, missing_folders, remove_empty
from bench.terminal import legible
from report.charts import Library
from report.figures import Figure, draw_all
from report.table import Table, unmarked

TITLE = "Comparison of multi-task post-training"
PARTS = ("tables", "figures")


@dataclass
class Section:
    """A titled section, as HTML for the page and as Markdown for report.md."""

    title: str
    parts: list[Markup | Figure] = field(default_factory=list)
    markdown: list[str] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The id of the section in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def say(self, text: Markup | str, kind: str = "p") -> None:
        """Add a paragraph; `kind` is its CSS class."""
        self.parts.append(Markup('<p class="{}">{}</p>').format(kind, text))
        self.markdown.append(f"{unmarked(text)}\n")

    def points(self, lead: Markup, texts: list[Markup], kind: str = "answer") -> None:
        """Add a lead sentence and a list of points."""
        items = Markup("").join(Markup("<li>{}</li>").format(text) for text in texts)
        whole = Markup('<div class="{}">{}{}</div>')
        said = Markup("<p>{}</p>").format(lead) if lead else ""
        # A screen reader would announce an empty list.
        listed = Markup("<ul>{}</ul>").format(items) if texts else ""
        self.parts.append(whole.format(kind, said, listed))
        self.markdown += [*([f"{unmarked(lead)}\n"] if lead else []), *(f"- {unmarked(text)}" for text in texts), ""]

    def fold(self, inner: "Section", count: int | None = None) -> None:
        """Add a part that a click opens, under the title of `inner` and the number of its points."""
        title = inner.title if count is None else f"{inner.title} ({count})"
        body = Markup("\n").join(part.html() if isinstance(part, Figure) else part for part in inner.parts)
        self.parts.append(_folded(title, body))
        self.markdown += [f"### {inner.title}\n", *inner.markdown]

    def head(self, text: str) -> None:
        """Add a subheading."""
        self.parts.append(Markup("<h3>{}</h3>").format(text))
        self.markdown.append(f"### {unmarked(text)}\n")

    def under(self, text: str, inner: "Section") -> None:
        """Add the parts of `inner` under a subheading; nothing if it has none."""
        if inner.parts:
            self.head(text)
            self.parts += inner.parts
            self.markdown += inner.markdown


@dataclass
class Report:
    """Everything that a report writes."""

    sections: list[Section] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    def show(self, section: Section, *things: Table | Figure | None, folded: bool = False) -> None:
        """Add tables and figures to a section and to the files written next to the page."""
        for thing in things:
            if isinstance(thing, Table) and thing.rows:
                self.tables.append(thing)
                note = Markup('<p class="note">{}</p>').format(thing.note)
                body = thing.html() + note
                section.parts.append(_folded(thing.title, body) if folded else body)
                section.markdown.append(f"**{unmarked(thing.title)}**\n\n{_noted(thing)}")
            elif isinstance(thing, Figure):
                self.figures.append(thing)
                # Drawn in `write`, together with all others and in parallel.
                section.parts.append(thing)
                title = unmarked(thing.title)
                # A closing bracket would end the alternative text in Markdown.
                alt = unmarked(thing.alt).replace("]", "\\]")
                section.markdown.append(f"![{alt}](figures/{thing.name}-page.png)\n\n{title}\n")


def _noted(table: Table) -> str:
    """A table in Markdown, followed by its note."""
    return f"{table.markdown()}\n{unmarked(table.note)}\n"


def _folded(title: str, body: Markup) -> Markup:
    return Markup("<details><summary>{}</summary>{}</details>").format(title, body)


def write(report: Report, folder: Path, title: str = TITLE) -> Path:
    """Write index.html, report.md, tables/ and figures/; return the path of the page.

    Files of an earlier report that this one does not have are removed. Raises UsageError if the folder cannot hold a
    report, and BenchError if writing fails; empty folders are then removed again.
    """
    if (folder / "spec.json").is_file():
        raise UsageError(f"{folder} is the folder of a run; choose another one for the report")
    # Noted before anything is created, parts first, because only empty folders can be removed.
    made = [[folder / part] for part in PARTS if not (folder / part).exists()]
    made.append(missing_folders(folder))
    try:
        return _written(report, folder, title)
    except BenchError:
        for folders in made:
            remove_empty(folders)
        raise


def _written(report: Report, folder: Path, title: str) -> Path:
    try:
        for part in PARTS:
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the report cannot be written to {folder}: {one_line(error)}") from error
    # Files would be written, and those of an earlier report removed, in a folder somewhere else.
    links = [part for part in PARTS if (folder / part).is_symlink()]
    if links:
        raise UsageError(f"the report cannot be written to {folder}: {links[0]} is a symbolic link")
    check_writable(folder)
    try:
        _write(folder, _files(report, title))
    except OSError as error:
        raise BenchError(f"the report could not be written: {one_line(error)}") from error
    return folder / "index.html"


def _files(report: Report, title: str) -> dict[str, bytes]:
    """Path relative to the report's folder -> content."""
    from jinja2 import Environment, PackageLoader

    tables = list(map(_Written, report.tables))
    # In parallel, before anything reads them: what is not made yet is made on its own when it is read.
    vega, charts = Library(), {figure.name: figure.chart for figure in report.figures if figure.chart}
    draw_all([*([vega] if charts else []), *report.figures, *tables])
    found: dict[str, bytes] = {}
    for table in tables:
        found |= {f"tables/{name}": content for name, content in table.files.items()}
    for figure in report.figures:
        found |= {f"figures/{name}": content for name, content in figure.saved().items()}
    lines = [f"# {unmarked(title)}\n"]
    for section in report.sections:
        lines += [f"## {section.title}\n", *section.markdown]
    found["report.md"] = _encoded("\n".join(lines))
    environment = Environment(loader=PackageLoader("report"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        title=title,
        sections=report.sections,
        shown=_shown,
        charts={name: chart().to_dict() for name, chart in charts.items()},
        vega=Markup(vega.files["vega.js"].decode()) if charts else "",
    )
    return found | {"index.html": _encoded(page)}


class _Written:
    """A table as files for spreadsheets, papers and Markdown; made as figures are, in parallel with them."""

    def __init__(self, table: Table) -> None:
        self.table = table

    @cached_property
    def files(self) -> dict[str, bytes]:
        """NAME.csv|md|tex -> content."""
        texts = {
            "csv": self.table.frame().map(_no_formula).to_csv(index=False),
            "md": _noted(self.table),
            "tex": self.table.latex(),
        }
        return {f"{self.table.name}.{kind}": _encoded(text) for kind, text in texts.items()}


FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _no_formula(cell: object) -> object:
    """Prefix text that a spreadsheet would evaluate as a formula with an apostrophe."""
    # A single sign, such as a dash for "not measured", is harmless.
    formula = isinstance(cell, str) and len(cell) > 1 and cell.startswith(FORMULA)
    return f"'{cell}" if formula else cell


def _encoded(text: str) -> bytes:
    """Encode text for a file, without control sequences that would affect a terminal."""
    return legible(text, lines=True).encode()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files, and remove files of an earlier report (files.txt) that this one does not have."""
    listed = folder / "files.txt"
    before = read_lines(listed) if listed.is_file() else []
    taken = [name for name in files if (folder / name).exists()]
    if taken and not before:
        raise UsageError(f"{folder}/{taken[0]} does not belong to an earlier report; choose another folder")
    for name in before:
        # files.txt may have been edited: only names that a report can have are removed, and none outside the folder.
        if name not in files and re.fullmatch(r"(tables|figures)/[A-Za-z0-9_.-]+", name):
            (folder / name).unlink(missing_ok=True)
    # Old and new names first: after an interruption the next report still knows every file that may be here.
    write_atomic(listed, _list_of({*before, *files}))
    for name, content in files.items():
        write_atomic(folder / name, content)
    write_atomic(listed, _list_of(files))


def _list_of(names: Iterable[str]) -> bytes:
    """The content of files.txt."""
    return ("\n".join(sorted(names)) + "\n").encode()


def _shown(part: Markup | Figure) -> Markup:
    return part.html() if isinstance(part, Figure) else part
