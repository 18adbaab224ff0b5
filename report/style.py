"""The style of all figures: colours and markers of lines, sizes, number formats."""

import hashlib
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

from bench.registry import registered
from bench.system.drawing import imported, own_settings

INK = "#010203"
"""Placeholder for the text colour in SVG files; on the page it becomes the colour of the reader's theme."""
WIDTHS = {"column": 3.35, "page": 6.9}
"""Width in inches of one column, and of the page, of a two-column paper."""
MOST = 24
"""Largest number of lines in a figure; the best are drawn, and the tables have all."""
MARKERS = "osD^vPX*<>hd"
COLOURS = (2, 9, 7, 8, 4, 3, 1, 6, 0, 5)
"""Indices into seaborn's colour-blind palette by index of the registered method; OPD and RL get the strongest."""
DASHES = ((), (4, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))


@dataclass(frozen=True)
class Look:
    """Style of a line in every figure: colour by method, marker and dashes by index among the method's lines."""

    colour: tuple[float, float, float]
    marker: str
    dashes: tuple[float, ...]
    matters: bool = True
    """Whether it is one of the few lines in colour."""


FONT_TYPE = 42
"""Kind of the fonts in PDF files: TrueType, because venues refuse Type 3."""
GREY = (0.6, 0.6, 0.6)
PLAIN = Look(GREY, "o", (), matters=False)
"""Look of a line that no figure singles out."""


def is_column(width: float) -> bool:
    """Whether a figure has column width, without room for panels next to each other."""
    return width == WIDTHS["column"]


def looks(lines: list[tuple[str, str]]) -> dict[str, Look]:
    """(label, method) -> Look, from seaborn's colour-blind palette; markers distinguish lines in greyscale."""
    # Before seaborn imports matplotlib with its defaults.
    imported()
    import seaborn

    palette = seaborn.color_palette("colorblind", 10)
    methods = list(registered("method"))
    seen: dict[str, int] = {}
    found = {}
    for place, (label, method) in enumerate(lines):
        # A method that is not installed here gets a colour by its name.
        named = int(hashlib.sha256(method.encode()).hexdigest(), 16)
        colour = methods.index(method) if method in methods else named
        variant = seen[method] = seen.get(method, -1) + 1
        # Repeated markers get other dashes.
        turn = variant + place // len(MARKERS)
        marker = MARKERS[place % len(MARKERS)]
        dashes = DASHES[turn % len(DASHES)]
        found[label] = Look(palette[COLOURS[colour % 10]], marker, dashes)
    return found


def white_at_zero():
    """Colour map from white at 0 to a dark orange that grey print keeps apart."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("white_at_zero", ["white", "#fdae6b", "#8c2d04"])


def logarithmic(axes, which: str, dense: bool = False) -> None:
    """Make an axis ("x" or "y") logarithmic with plain-text ticks; `drawing` disables matplotlib's formulas.

    `dense` also labels 2 and 5 of every decade, for an axis of about one, of which the default labels one tick.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    if dense:
        from matplotlib.ticker import LogLocator

        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


@contextmanager
def drawing():
    """A context with matplotlib set up for the figures of a report."""
    settings = {
        "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
        "legend.fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.3, "lines.markersize": 4,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.grid": True,
        "grid.linewidth": 0.4, "grid.alpha": 0.35, "figure.constrained_layout.use": True, "svg.hashsalt": "report",
        "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
        "legend.handlelength": 2.8, "legend.columnspacing": 1.0, "savefig.facecolor": "white",
        "pdf.fonttype": FONT_TYPE, "image.composite_image": False, "text.parse_math": False,
    }  # fmt: skip
    with own_settings(settings), warnings.catch_warnings():
        # Characters missing from the font are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        yield
