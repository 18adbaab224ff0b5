"""The figures of a report, drawn from its tables, saved for papers and embedded in the page with exact values."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from markupsafe import Markup

from bench.system.drawing import imported
from report.charts import curves_chart
from report.parallel import cores_for, forked
from report.style import INK, WIDTHS, Look, drawing, is_column, white_at_zero

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

SVG = "http://www.w3.org/2000/svg"
SEPARATOR = "\u241f"
Draw = Callable[[float], "MatplotlibFigure"]
"""Width in inches -> figure."""


@dataclass
class Figure:
    """A named figure with its alternative text."""

    name: str
    title: str
    alt: str
    draw: Draw
    responsive: bool = field(default=False, kw_only=True)
    """Whether the page shows it at column width where the window is narrow."""
    chart: Callable[[], Any] | None = field(default=None, kw_only=True)
    """Makes an interactive chart (Altair) of the same numbers, which the page offers."""

    @cached_property
    def files(self) -> dict[str, bytes]:
        """NAME-column|page.pdf|svg|png -> content."""
        plt = imported().pyplot

        made = {}
        for size, width in WIDTHS.items():
            with drawing():
                figure = self.draw(width)
                # Lay out once for all formats: the layout engine would run again for each, and is slow. Without any
                # engine ("none" keeps a placeholder) each format is also drawn once instead of twice.
                figure.draw_without_rendering()
                with plt.rc_context({"figure.constrained_layout.use": False}):
                    figure.set_layout_engine(None)
                    for kind in ("pdf", "svg", "png"):
                        data = io.BytesIO()
                        see_through = kind != "png"
                        figure.savefig(data, format=kind, dpi=200, metadata=_undated(kind), transparent=see_through)
                        made[f"{self.name}-{size}.{kind}"] = data.getvalue()
                plt.close(figure)
        return made

    def saved(self) -> dict[str, bytes]:
        """The files as they are written, with black ink."""
        return {
            name: content.replace(INK.encode(), b"#000000") if name.endswith("svg") else content
            for name, content in self.files.items()
        }

    def html(self) -> Markup:
        """Inline SVG in the reader's theme; hovering over a marker shows its value."""
        shown = Markup("")
        for size in ("page", "column") if self.responsive else ("page",):
            # Ids are unique within the page.
            name = self.name if size == "page" else f"{self.name}-{size}"
            svg = Markup(_inline(self.files[f"{self.name}-{size}.svg"].decode(), self.alt, name))
            shown += Markup('<div class="{}">{}</div>').format(f"at-{size}", svg) if self.responsive else svg
        return Markup(
            '<figure id="figure-{}"{}><div class="scroll" tabindex="0" role="region" aria-label="{}">{}</div>'
            "<figcaption>{}</figcaption></figure>"
        ).format(self.name, Markup(' class="responsive"' if self.responsive else ""), self.title, shown, self.title)


class Drawn(Protocol):
    """What is made once, slowly, and has files."""

    @property
    def files(self) -> dict[str, bytes]:
        """Name -> content."""
        ...


_WAITING: list[Drawn] = []
"""Figures for the forked processes, which inherit them because a closure cannot be pickled."""


def draw_all(figures: Sequence[Drawn]) -> None:
    """Make the files of many figures, and of what else has files, in parallel. Those left out are made when needed."""
    cores = cores_for(len(figures))
    if cores < 2:
        return
    # Imported before the fork, once instead of in every process.
    imported()
    import seaborn  # noqa: F401

    _WAITING[:] = figures
    try:
        # If it ends early, `files` draws the rest when needed.
        for figure, files in zip(figures, forked(_drawn, range(len(figures)), cores)):
            figure.__dict__["files"] = files
    finally:
        _WAITING.clear()


def _drawn(place: int) -> dict[str, bytes]:
    return _WAITING[place].files


def _undated(kind: str) -> dict:
    """Metadata without a date, so that equal figures give equal files."""
    dated = {"svg": "Date", "pdf": "CreationDate", "png": "Software"}
    return {dated[kind]: None}


def _inline(svg: str, alt: str, name: str) -> str:
    """An SVG for the page: no XML header, unique ids, ink that follows the theme, and titles on marks with values."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", svg))
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for group in root.iter(f"{{{SVG}}}g"):
        told = group.get("id", "")
        if not told.startswith("says:"):
            continue
        texts = told.removeprefix("says:").split(SEPARATOR)
        # Matplotlib draws each marker as a <use> of one <path>; only artists without markers are paths themselves.
        uses = list(group.iter(f"{{{SVG}}}use"))
        marks = uses or list(group.iter(f"{{{SVG}}}path"))
        for mark, text in zip(marks, texts):
            ElementTree.SubElement(mark, f"{{{SVG}}}title").text = text
        del group.attrib["id"]
    root.set("role", "img")
    root.set("aria-label", alt)
    # Without a fixed size the view box scales with the page.
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    text = ElementTree.tostring(root, encoding="unicode")
    # Ids are unique within a figure only, and the page holds many figures.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\g<1>"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace(INK, "currentColor")


def says(artist, texts: list[str]) -> None:
    """Set the texts that hovering over an artist's markers shows, in their order."""
    artist.set_gid("says:" + SEPARATOR.join(texts))


def draw_curve(axes, x, y, style: Look, texts: list[str]) -> None:
    """Draw a curve whose points show their texts when hovered over. Grey ones are thin and lie below."""
    order = {"zorder": 3} if style.matters else {"zorder": 2, "linewidth": 0.7, "markersize": 3}
    (curve,) = axes.plot(x, y, marker=style.marker, color=style.colour, **order)
    if style.dashes:
        curve.set_dashes(style.dashes)
    says(curve, texts)


def draw_band(axes, x, low, high, style: Look) -> None:
    """Draw the intervals along a curve in colour as a band; grey ones would hide each other."""
    if style.matters:
        axes.fill_between(x, low, high, color=style.colour, alpha=0.15, linewidth=0, zorder=1)


def label_ends(axes, ends: list[tuple[float, float, str, Look]], narrow: bool) -> None:
    """Write names right of the axes at the heights of the points (x, y, name, look), moved apart, with thin leaders."""
    if not ends:
        return
    letters, size = (18, 5.5) if narrow else (26, 6.5)
    figure = axes.figure
    low, high = axes.get_ylim()
    # The height of a line of text in units of the axis; constrained layout takes about a third of a narrow figure.
    rows = axes.get_gridspec().nrows
    spacing = 1.25 if rows == 1 else 1.7
    line = spacing * size / 72 * (high - low) / (0.75 * figure.get_size_inches()[1] / rows)
    names = [broken(name, letters, ",=") for _, _, name, _ in ends]
    order = sorted(range(len(ends)), key=lambda k: ends[k][1])
    tall = [line * (name.count("\n") + 1) for name in names]
    places = {k: ends[k][1] for k in order}
    # Upwards first, then downwards where the topmost has left the axes.
    for below, above in pairwise(order):
        places[above] = max(places[above], places[below] + (tall[below] + tall[above]) / 2)
    over = max(0.0, places[order[-1]] + tall[order[-1]] / 2 - high)
    places[order[-1]] -= over
    for above, below in pairwise(reversed(order)):
        places[below] = min(places[below], places[above] - (tall[below] + tall[above]) / 2)
    for k, (x, y, _, look) in enumerate(ends):
        colour = look.colour if look.matters else INK
        axes.annotate(
            names[k], (x, y), xytext=(1.03, places[k]), textcoords=axes.get_yaxis_transform(), color=colour,
            fontsize=size, va="center", ha="left", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


Levels = dict[str, dict[str, float]]
"""Task or "mean" -> reference model (base, teacher) -> its score."""
LEVELS = {"base": ":", "teacher": "--"}
LEVELS_SAID = {"base": "Dotted: base at its best guidance.", "teacher": "Dashed: each task's own teacher."}


def draw_levels(line, task: str, levels: Levels) -> None:
    """Draw reference scores across the axes; `line` is the axes' axhline or axvline."""
    for name, value in levels.get(task, {}).items():
        drawn = line(value, linestyle=LEVELS[name], color="0.5", linewidth=1.0, zorder=1)
        says(drawn, [f"{name}, {task}: {value!r}"])


def wrapped(labels: Iterable[str], narrow: bool) -> list[str]:
    """Row labels of a figure; in a narrow one they are broken into several lines between settings."""
    return [broken(label, 28, ",") if narrow else label for label in labels]


def broken(label: str, letters: int, after: str) -> str:
    """A name wrapped to a number of letters per line, at spaces and after the given signs."""
    # textwrap does not break after these signs, so they get a space while it wraps.
    # Not within a number, nor between a sign and its number.
    spaced = re.sub(rf"([{after}])(?!\d)", r"\1 ", label)
    lines = "\n".join(textwrap.wrap(spaced, letters))
    return re.sub(f"([{after}]) ", r"\1", lines)


def row_height(labels: Iterable[str], narrow: bool) -> float:
    """Height in inches of a row with the tallest of the labels."""
    return 0.06 + 0.13 * max(label.count("\n") + 1 for label in wrapped(labels, narrow))


def draw_intervals(
    axes,
    frame: pd.DataFrame,
    by: str,
    key: str,
    look: dict[str, Look],
    narrow: bool,
    called: str = "",
) -> None:
    """Draw one row per row of the frame: the value of column `key` with its interval, labelled by column `by`."""
    for y, row in enumerate(frame.to_dict("records")):
        style, value = look[row[by]], row[key]
        low, high = row[f"{key}_low"], row[f"{key}_high"]
        axes.plot([low, high], [y, y], "-", color=style.colour)
        (mark,) = axes.plot([value], [y], style.marker, color=style.colour)
        says(mark, [f"{row[by]}{called}: {value!r} [{low!r}, {high!r}]"])
    # The axis points down, so that rows are in the order of the table.
    axes.set(yticks=range(len(frame)), ylim=(len(frame) - 0.5, -0.5))
    axes.set_yticklabels(wrapped(frame[by], narrow))


def _columns(lines: list[str], narrow: bool) -> int:
    """Number of columns of a legend: as many as fit, up to three."""
    for columns in () if narrow else (3, 2):
        rows = math.ceil(len(lines) / columns)
        # Matplotlib fills legends column by column; each is as wide as its longest label.
        blocks = [lines[k : k + rows] for k in range(0, len(lines), rows)]
        letters = sum(max(map(len, block)) for block in blocks)
        # 0.05 inches per letter, and 0.45 for the sample of a line and the space around it.
        if 0.05 * letters + 0.45 * columns < WIDTHS["page"] - 0.1:
            return columns
    return 1


def room(lines: list[str], narrow: bool) -> float:
    """Height in inches of the legend."""
    return 0.14 * math.ceil(len(lines) / _columns(lines, narrow)) + 0.2


def legend(figure, axes, lines: list[str], narrow: bool) -> None:
    """Add a legend below the panels; the curves of the lines are the first artists of the axes, in order."""
    # Matplotlib leaves labels that begin with an underscore out of legends.
    labels = [f" {line}" if line.startswith("_") else line for line in lines]
    curves = axes.get_lines()[: len(lines)]
    figure.legend(curves, labels, loc="outside lower center", ncols=_columns(lines, narrow))


def with_levels(title: str, levels: Levels) -> str:
    """A figure's title, with what the lines of `draw_levels` mean."""
    drawn = [name for name in LEVELS if any(name in values for values in levels.values())]
    return " ".join([title, *(LEVELS_SAID[name] for name in drawn)])


def scores_figure(
    frame: pd.DataFrame,
    tasks: list[str],
    heads: dict[str, str],
    look: dict[str, Look],
    levels: Levels,
    name: str,
) -> Figure:
    """Score and interval of every line by task."""
    keys = [*tasks, "mean"]
    rows = frame[frame["line"].isin(look)]

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        # At column width there is room for one panel next to the names.
        shown = keys[-1:] if narrow else keys
        columns = min(4, len(shown))
        down = math.ceil(len(shown) / columns)
        height = max(1.6, row_height(rows["line"], narrow) * len(rows) + 0.7)
        size = (width, height * down)
        figure, grid = plt.subplots(down, columns, figsize=size, sharey=True, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for axes, key in zip(grid.flat, shown):
            draw_intervals(axes, rows, "line", key, look, narrow, f", {key}")
            draw_levels(axes.axvline, key, levels)
            axes.set(title=heads.get(key, "mean score"), xlabel="score")
        return figure

    best = rows[rows["mean"] == rows["mean"].max()]
    whose = " and ".join(best["line"])
    alt = f"Scores with intervals of {len(rows)} lines. Highest mean score: {whose}, {rows['mean'].max():.3f}."
    title = "Held-out scores, mean and 95% interval (at column width, the mean score only)."
    return Figure(name, with_levels(title, levels), alt, draw)


def curves_figure(
    frame: pd.DataFrame,
    tasks: list[str],
    look: dict[str, Look],
    levels: Levels,
    name: str,
) -> Figure:
    """Scores during training against NFE and against seconds."""
    lines = [label for label in look if (frame["line"] == label).any()]

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        # At column width there is no room for both.
        axes_of = ("nfe",) if narrow else ("nfe", "seconds")
        columns = 1 if narrow else min(3, len(tasks))
        rows = math.ceil(len(tasks) / columns) * len(axes_of)
        size = (width, 1.75 * rows + room(lines, narrow))
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
        for place, axes in enumerate(grid.flat):
            row, column = divmod(place, columns)
            block, kind = divmod(row, len(axes_of))
            # Rows alternate between NFE and seconds, and every block of rows holds `columns` tasks.
            index = block * columns + column
            if index >= len(tasks):
                axes.remove()
                continue
            task, axis = tasks[index], axes_of[kind]
            for label in lines:
                points = frame[(frame["line"] == label) & (frame["task"] == task)]
                scale = 1000 if axis == "nfe" else 1
                said = [f"{label}, {task}: {row.score!r} at {row[axis]!r} {axis}" for _, row in points.iterrows()]
                draw_curve(axes, points[axis] / scale, points["score"], look[label], said)
                draw_band(axes, points[axis] / scale, points["score_low"], points["score_high"], look[label])
            draw_levels(axes.axhline, task, levels)
            unit = "training NFE (thousands)" if axis == "nfe" else "training and scoring (s)"
            axes.set(title=task, xlabel=unit, ylabel="score")
            # Names have room beside the last panel of a row only.
            if column == columns - 1 or index == len(tasks) - 1:
                label_ends(axes, _ends(frame, task, axis, scale, look), narrow)
        legend(figure, grid.flat[0], lines, narrow)
        return figure

    title = (
        "Anytime curves: held-out score during training against NFE and, at page width, against seconds. Bands: 95% "
        "intervals of the lines in colour."
    )
    return Figure(
        name,
        with_levels(title, levels),
        f"Scores during training of {len(lines)} lines on {', '.join(tasks)}; the table below has the numbers.",
        draw,
        chart=lambda: curves_chart(frame, tasks, look),
    )


def _ends(frame: pd.DataFrame, task: str, axis: str, scale: float, look: dict[str, Look]) -> list[tuple]:
    """The last points of the lines in colour, for `label_ends`."""
    found = []
    for label, style in look.items():
        points = frame[(frame["line"] == label) & (frame["task"] == task)]
        if style.matters and len(points):
            found.append((points[axis].iloc[-1] / scale, points["score"].iloc[-1], label, style))
    return found


def heat_figure(frame: pd.DataFrame, tasks: list[str], lines: list[str], name: str) -> Figure:
    """Drop from the best recorded point by line and task."""

    def drop(line: str, task: str) -> float:
        found = frame[(frame["line"] == line) & (frame["task"] == task)]["drop"]
        return next(iter(found), math.nan)

    matrix = np.array([[drop(line, task) for task in tasks] for line in lines])

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        height = max(1.4, row_height(lines, narrow) * len(lines) + 0.9)
        figure, axes = plt.subplots(figsize=(width, height))
        axes.grid(False)
        # A floor for the scale, so that noise of a thousandth is not drawn in the darkest colour.
        top = max(0.05, float(np.nanmax(matrix, initial=0)))
        axes.imshow(matrix, cmap=white_at_zero(), vmin=0, vmax=top, aspect="auto")
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                text = "–" if math.isnan(value) else f"{value:.3f}"
                dark = not math.isnan(value) and value > top / 2
                colour = "white" if dark else "black"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
        axes.set(xticks=range(len(tasks)), yticks=range(len(lines)))
        axes.set_yticklabels(wrapped(lines, narrow))
        axes.set_title("drop from best (score)")
        axes.set_xticklabels(tasks, rotation=30, ha="right", rotation_mode="anchor")
        return figure

    worst = float(np.nanmax(matrix, initial=0))
    return Figure(
        name,
        "Forgetting: best recorded score minus final score.",
        f"Drop from the best recorded point by line and task; the largest is {worst:.3f}.",
        draw,
    )


def course_figure(
    frame: pd.DataFrame,
    by: str,
    value: str,
    look: dict[str, Look],
    name: str,
    title: str,
    label: str,
) -> Figure:
    """A value over the budget with one panel per group, such as cosines by pair of tasks."""
    groups = list(dict.fromkeys(frame[by]))
    lines = [line for line in look if (frame["line"] == line).any()]

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        columns = min(2 if narrow else 3, len(groups))
        rows = math.ceil(len(groups) / columns)
        size = (width, 1.7 * rows + room(lines, narrow))
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
        for axes in grid.flat[len(groups) :]:
            axes.remove()
        for axes, group in zip(grid.flat, groups):
            for line in lines:
                points = frame[(frame["line"] == line) & (frame[by] == group)]
                said = [f"{line}, {group}: {row[value]!r} at {row['share']:.0%}" for _, row in points.iterrows()]
                draw_curve(axes, points["share"], points[value], look[line], said)
            axes.set(title=group, xlabel="fraction of budget", ylabel=label, xlim=(-0.04, 1.04))
            axes.label_outer(remove_inner_ticks=False)
        legend(figure, grid.flat[0], lines, narrow)
        return figure

    return Figure(name, title, f"{title} {len(lines)} lines, {len(groups)} panels.", draw)


def gold_figure(frame: pd.DataFrame, look: dict[str, Look], name: str) -> Figure:
    """Known utility against the learned reward, one path over training per line."""
    lines = [line for line in look if (frame["line"] == line).any()]

    def draw(width: float):
        import matplotlib.pyplot as plt

        narrow = is_column(width)
        figure, axes = plt.subplots(figsize=(width, 2.8 + room(lines, narrow)))
        for line in lines:
            points = frame[frame["line"] == line]
            said = [
                f"{line} at {row['share']:.0%}: reward {row['proxy']!r}, utility {row['gold']!r}"
                for _, row in points.iterrows()
            ]
            draw_curve(axes, points["proxy"], points["gold"], look[line], said)
        axes.set(xlabel="reward (held-out score)", ylabel="known utility (score)")
        legend(figure, axes, lines, narrow)
        return figure

    return Figure(
        name,
        "Over-optimisation: a path to the lower right gains reward and loses known utility.",
        f"Known utility against reward during training of {len(lines)} lines.",
        draw,
    )
