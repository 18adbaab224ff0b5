"""Image grids: the same prompt and initial noise across base, teacher and lines, with rows chosen by rule."""

import base64
import io
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from bench.analysis.records import headline
from bench.errors import UsageError
from bench.scoring.folders import Sample, load, read
from bench.scoring.pictures import to_bytes
from report.checks import printable
from report.evidence import FoundRun
from report.figures import Figure, broken
from report.lines import Line, Pool
from report.table import Column, Table, number, plain, slugs
from report.table import Row as TableRow
from report.tables import student_score

SPACED, LINES = 4, 8
"""Number of equally spaced prompts, and largest number of lines in a grid."""
SIDE = 192
"""Side in pixels to which larger images are reduced for the page."""
LARGEST = 0.9
"""Largest side of an image in figures for papers, in inches."""
SIGNS = "_=,"
"""Characters after which the name of a line may be broken."""
CAPTION = 200
"""Characters of a prompt that the page shows; the table has all of it."""


@dataclass(frozen=True)
class Shown:
    """One column of a grid: a model, its images, and their scores in the same order."""

    label: str
    samples: list[Sample]
    scores_N: np.ndarray

    def same_prompts(self, other: "Shown") -> bool:
        """Whether both columns show the same prompts in the same order."""
        mine = [sample.prompt.text for sample in self.samples]
        theirs = [sample.prompt.text for sample in other.samples]
        return mine == theirs


@dataclass(frozen=True)
class Row:
    """One row of a grid."""

    index: int
    why: str
    prompt: str


@dataclass
class Grid(Figure):
    """A figure that the page shows as a table of images with their scores."""

    rows: list[Row]
    columns: list[Shown]
    pictures: dict[tuple[int, int], np.ndarray | None]
    """Row's index and column's place -> uint8 [H, W, 3]; None if the file is not a readable image."""

    def html(self) -> Markup:
        """The grid as a table of embedded images, which the page's script shows prompt by prompt."""
        heads = Markup("").join(
            Markup('<th scope="col">{}</th>').format(_breakable(column.label)) for column in self.columns
        )
        # A prompt may be in a language that is written from right to left, hence dir="auto".
        template = '<tr><th scope="row"><span dir="auto" title="{}">{}</span> <small>{}</small></th>{}</tr>'
        body = Markup("")
        for row in self.rows:
            cells = Markup("").join(self._cell(row, place) for place in range(len(self.columns)))
            body += Markup(template).format(row.prompt, _short(row.prompt), row.why, cells)
        return Markup(
            '<figure id="figure-{}"><div class="scroll" tabindex="0" role="region" aria-label="{}">'
            '<table class="grid"><thead><tr><th scope="col">prompt</th>{}</tr></thead><tbody>{}</tbody></table></div>'
            "<figcaption>{}</figcaption></figure>"
        ).format(self.name, self.alt, heads, body, self.title)

    def _cell(self, row: Row, place: int) -> Markup:
        column = self.columns[place]
        score = float(column.scores_N[row.index])
        picture = self.pictures[row.index, place]
        if picture is None:
            shown = Markup('<td data-label="{}">no image<br>{}</td>')
            return shown.format(column.label, number(score, "score"))
        alt = f"{column.label}: {_short(row.prompt)}; score {plain(score, 'score')}"
        return Markup('<td data-label="{}"><img src="{}" alt="{}" width="96" height="96"><br>{}</td>').format(
            column.label, _address(picture), alt, number(score, "score")
        )


def _breakable(label: str) -> Markup:
    """A name with optional line breaks between its parts."""
    return Markup(re.sub(f"([{SIGNS}])", r"\1<wbr>", str(escape(label))))


def _short(text: str) -> str:
    return text if len(text) <= CAPTION else text[: CAPTION - 1] + "…"


def _address(pixels: np.ndarray) -> str:
    """An image as a data URI: a PNG of the same size if it is small, otherwise a JPEG of side SIDE."""
    picture = Image.fromarray(pixels)
    # JPEG would blur the few pixels of a small image; PNG would make the page of large ones too big to load.
    kind = "jpeg" if max(picture.size) > SIDE else "png"
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, kind, quality=88, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def grids(pool: Pool, prefix: str, problems: list[str]) -> list[tuple[Table, Grid]]:
    """The grid and table of every task for which a run kept images; unreadable images are added to `problems`."""
    found = []
    for name, task in zip(slugs(pool.tasks), pool.tasks):
        lines, references = _columns(pool, task, problems)
        if lines:
            found.append(_grid(pool, task, lines, references, f"{prefix}pictures-{name}", problems))
    return found


def _columns(
    pool: Pool,
    task: str,
    problems: list[str],
) -> tuple[dict[str, tuple[Line, Shown]], list[Shown]]:
    """Lines with kept images, best first, and the base and the task's own teacher."""
    ranked = sorted(pool.lines, key=lambda line: -student_score(line.records, task))
    lines: dict[str, tuple[Line, Shown]] = {}
    references: dict[str, Shown] = {}
    gone: list[str] = []
    for line in ranked:
        for run in pool.pictured.get(line.label, [])[:1]:
            if len(lines) == LINES:
                break
            try:
                shown = _shown(run, "student", task, line.label)
                if lines and not shown.same_prompts(next(iter(lines.values()))[1]):
                    raise UsageError("they show other prompts than those of the first line")
                lines[line.label] = line, shown
                for model in ("base", f"teacher {task}"):
                    if model not in references and model in run.result.summary["pictures"]:
                        references[model] = _shown(run, model, task, model)
            # Results are often copied without their images: one problem per task, not one per run.
            except FileNotFoundError as error:
                lines.pop(line.label, None)
                gone.append(str(error))
            except (OSError, UsageError) as error:
                lines.pop(line.label, None)
                problems.append(f"images of {run.name}: {error}")
    if gone:
        others = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        problems.append(f"images of {task} are missing: {gone[0]}{others}")
    return lines, list(references.values())


def _shown(run: FoundRun, model: str, task: str, label: str) -> Shown:
    """One column. Raises UsageError for images outside the results folder, or whose number differs from the scores."""
    root = run.folder.parent.resolve()
    place = run.result.summary["pictures"][model][task]
    folder = (root / place).resolve()
    if root not in folder.parents:
        raise UsageError(f"{place} is outside the results folder")
    if not folder.is_dir():
        raise FileNotFoundError(place)
    samples = read(folder)
    scores_N, _ = headline(run.result.summary["models"][model][task])
    # A report embeds what it reads, so records from others must not reach files elsewhere.
    if any(root not in sample.path.resolve().parents for sample in samples):
        raise UsageError(f"{place} has links that lead out of the results folder")
    if len(samples) != len(scores_N):
        raise UsageError(f"{len(samples)} images of {model} for {len(scores_N)} scores")
    return Shown(label, samples, scores_N)


def _grid(
    pool: Pool,
    task: str,
    lines: dict[str, tuple[Line, Shown]],
    references: list[Shown],
    name: str,
    problems: list[str],
) -> tuple[Table, Grid]:
    columns = [*references, *(shown for _, shown in lines.values())]
    samples, yardstick = columns[0].samples, references[-1] if references else None
    count = len(samples)
    why: dict[int, list[str]] = {}
    for k in range(min(SPACED, count)):
        index = k * count // min(SPACED, count)
        why.setdefault(index, []).append("by number")
    for label, (line, shown) in lines.items():
        if yardstick:
            worst, best = _extremes(line, shown, yardstick, task)
            why.setdefault(worst, []).append(f"worst of {label}")
            why.setdefault(best, []).append(f"best of {label}")
    rows = []
    for index, reasons in why.items():
        rows.append(Row(index, ", ".join(reasons), samples[index].prompt.text))
    table = Table(
        name,
        f"Images, {task}: {pool.title}",
        f"Each row has the same prompt and initial noise. At most the {LINES} best lines with kept images are shown, "
        "each with its first seed that kept them. By number: equally spaced prompts. Worst and best: the prompts where "
        "a line is furthest below and above the column before the lines; ties are broken by the mean over seeds, then "
        "by prompt number. The figures for papers leave out the best.",
        [
            Column("index", "number", "count"),
            Column("prompt", "prompt"),
            Column("why", "chosen"),
            *(Column(f"score_{i}", column.label, "score") for i, column in enumerate(columns)),
        ],
    )
    for row in rows:
        cells: TableRow = {"index": row.index, "prompt": row.prompt, "why": row.why}
        for i, column in enumerate(columns):
            cells[f"score_{i}"] = float(column.scores_N[row.index])
        table.rows.append(cells)
    title = f"{task}: {pool.title}. Each score is below its image."
    alt = f"Images for {len(rows)} prompts of {task} by {', '.join(column.label for column in columns)}."
    pictures = {}
    for row in rows:
        for place, column in enumerate(columns):
            pictures[row.index, place] = _picture(column.samples[row.index].path, problems)

    # One more row for each line would make a figure longer than a page of a paper.
    drawn = [row for row in rows if not all(reason.startswith("best of ") for reason in why[row.index])]

    def draw(width: float):
        return _draw(width, drawn, columns, pictures)

    return table, Grid(name, title, alt, draw, rows, columns, pictures)


def _picture(path: Path, problems: list[str]) -> np.ndarray | None:
    try:
        return to_bytes(load(path))
    except UsageError as error:
        problems.append(str(error))
        return None


def _extremes(line: Line, shown: Shown, yardstick: Shown, task: str) -> tuple[int, int]:
    """Indices of the images whose scores are furthest below and above that of the reference column."""
    seeds = [headline(record.summary["models"]["student"][task])[0] for record in line.records]
    seeds_SN = np.stack(seeds)
    here = shown.scores_N - yardstick.scores_N
    usually = seeds_SN.mean(0) - yardstick.scores_N
    # lexsort takes its last key first. Scores of 0 and 1 tie often, so ties need a rule.
    numbers = np.arange(len(here))
    return int(np.lexsort((numbers, usually, here))[0]), int(np.lexsort((numbers, -usually, -here))[0])


def _draw(
    width: float,
    rows: list[Row],
    columns: list[Shown],
    pictures: dict[tuple[int, int], np.ndarray | None],
):
    """The grid for papers: one axes in units of an image's side, with a caption above each row."""
    import matplotlib.pyplot as plt

    side = min(width / len(columns), LARGEST)
    points = min(7.0, 8.5 * side)
    letters = 125 / points  # per inch, approximately
    fitting = max(int(side * letters), 4)
    labels = [broken(column.label, fitting, SIGNS) for column in columns]
    # Height of a line of text in units of an image's side; a point is 1/72 inch.
    line = 1.25 * points / 72 / side
    most = max(label.count("\n") + 1 for label in labels)
    caption, head = 1.5 * line, line * (0.5 + most)
    tall = head + len(rows) * (1 + caption)
    figure = plt.figure(figsize=(width, side * tall))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for j, label in enumerate(labels):
        axes.text(j + 0.5, head - 0.05, label, ha="center", va="bottom", fontsize=points)
    for i, row in enumerate(rows):
        top = head + i * (1 + caption) + caption
        said = printable(f"{row.prompt} ({row.why})")
        text = textwrap.shorten(said, int(width * letters), placeholder="…")
        axes.text(0.03, top - 0.06, text, ha="left", va="bottom", fontsize=points)
        for j in range(len(columns)):
            picture = pictures[row.index, j]
            place = (j + 0.03, j + 0.97, top + 0.97, top + 0.03)
            if picture is not None:
                axes.imshow(picture, extent=place, interpolation="nearest", aspect="auto")
    # Last, because every image moves the limits.
    axes.set(xlim=(0, width / side), ylim=(tall, 0))
    return figure
