"""How figures look, once: colours and markers of lines, sizes, number formats."""

import hashlib
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

from bench.registry import registered
from bench.system.drawing import imported, own_settings

INK = "#010203"
"""Stands for the text's colour in SVG files on the page, where it becomes that of the reader's theme."""
WIDTHS = {"column": 3.35, "page": 6.9}
"""Inches: one column and the whole width of a two-column paper."""
MOST = 24
"""Lines in one figure; of more, the best are drawn and the tables hold them all."""
MARKERS = "osD^vPX*<>hd"
COLOURS = (2, 9, 7, 3, 4, 0, 1, 5, 6, 8)
"""Places in seaborn's colour-blind palette by a method's among the registered ones: the strongest to OPD and RL."""
DASHES = ((), (4, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))


@dataclass(frozen=True)
class Look:
    """Of one line, the same in every figure: colour by method, marker and dashes by its place among the method's."""

    colour: tuple[float, float, float]
    marker: str
    dashes: tuple[float, ...]


def is_column(width: float) -> bool:
    """Whether a figure is of one column: it has no room for panels beside each other."""
    return width == WIDTHS["column"]


def looks(lines: list[tuple[str, str]]) -> dict[str, Look]:
    """(label, method) -> Look. Colours are seaborn's colour-blind palette; markers tell lines apart in grey too."""
    imported()  # before seaborn imports it in its own way
    import seaborn

    palette = seaborn.color_palette("colorblind", 10)
    methods = list(registered("method"))
    seen: dict[str, int] = {}
    found = {}
    for place, (label, method) in enumerate(lines):
        # By name where the method of a record is not installed here.
        named = int(hashlib.sha256(method.encode()).hexdigest(), 16)
        colour = methods.index(method) if method in methods else named
        variant = seen[method] = seen.get(method, -1) + 1
        turn = variant + place // len(MARKERS)  # markers repeat, with other dashes
        found[label] = Look(palette[COLOURS[colour % 10]], MARKERS[place % len(MARKERS)], DASHES[turn % len(DASHES)])
    return found


def logarithmic(axes, which: str) -> None:
    """Give an axis ("x" or "y") powers of ten in plain text: matplotlib's own are formulas, which `drawing` forbids."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


@contextmanager
def drawing():
    """matplotlib set up for the figures of a report."""
    settings = {
        "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
        "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.3, "lines.markersize": 4,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.grid": True,
        "grid.linewidth": 0.4, "grid.alpha": 0.35, "figure.constrained_layout.use": True, "svg.hashsalt": "report",
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "legend.handlelength": 2.8, "legend.columnspacing": 1.0, "savefig.facecolor": "white", "pdf.fonttype": 42,
        "image.composite_image": False, "text.parse_math": False,
    }  # fmt: skip
    with own_settings(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # scripts and emoji that the font has not are drawn as boxes
        yield
