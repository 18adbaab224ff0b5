"""The picture of part 2: python results/reference/study/part2/picture.py draws phase.svg and phase.png.

Where distillation beats joint RL in the worse task of a pair, over the prompts that tasks have in common and the
conflict of their rewards, for each number of tasks, with teachers counted and not. Other factors are at their middle.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from model import HERE, OVERLAP, RESPONSES, complete, estimates, fit, predictions, responses

from bench.errors import exit_on_error
from bench.system.drawing import imported
from report.style import INK, WIDTHS, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = {2: -1.0, 4: 0.0, 6: 1.0}
"""Number of tasks -> its code."""
ANGLES = {"0°": 0.0, "90°": 0.5, "180°": 1.0}
"""Angle between the two rewards of a pair -> conflict."""
NOTE = (
    "blue: distillation ahead; line: no difference; hatched: a point's 95% interval, not corrected, includes 0\n"
    "circles: cells, adjusted to the middle of other factors, beside each other where their place is the same\n"
    "the axis of the angle is linear in its cosine; between the places of cells the model interpolates"
)
FINE = np.linspace(0, 1, 41)


def surface(data: pd.DataFrame, tasks: float) -> tuple[np.ndarray, np.ndarray]:
    """(predicted response, whether its 95% interval excludes 0), each [conflict, overlap], at a code of tasks."""
    conflict, overlap = (grid.ravel() for grid in np.meshgrid(FINE, FINE, indexing="ij"))
    found = estimates(data, predictions(pd.DataFrame({"overlap": overlap, "conflict": conflict, "tasks": tasks})))
    value, sure = (found[name].to_numpy().reshape(len(FINE), -1) for name in ("value", "p"))
    return value, sure < 0.05


def adjusted(data: pd.DataFrame) -> pd.DataFrame:
    """Each cell's response, minus what the model ascribes to all that the picture does not show."""
    model = fit(data)
    shown = predictions(data[["overlap", "conflict", "tasks"]])
    return data.assign(response=shown @ model.params.to_numpy() + model.resid)


def phase(outcomes: pd.DataFrame) -> "Figure":
    """A panel for each number of tasks (columns) and each of the two responses (rows)."""
    plt = imported().pyplot
    found: dict[tuple[str, int], Any] = {}
    dots = {}
    for name, line in RESPONSES.items():
        data = responses(outcomes, line)
        dots[name] = adjusted(data)
        found |= {(name, number): surface(data, code) for number, code in TASKS.items()}
    shown = [*(value for value, _ in found.values()), *(cells["response"] for cells in dots.values())]
    reach = max(np.abs(values).max() for values in shown)
    figure, axes = plt.subplots(
        len(RESPONSES), len(TASKS), sharex=True, sharey=True, squeeze=False, figsize=(WIDTHS["page"], 4.6)
    )
    scale = {"cmap": "RdBu", "vmin": -reach, "vmax": reach}
    for (name, number), (value, sure) in found.items():
        panel = axes[list(RESPONSES).index(name), list(TASKS).index(number)]
        shade = panel.pcolormesh(FINE, FINE, value, shading="gouraud", rasterized=True, **scale)
        panel.contourf(FINE, FINE, sure.astype(float), levels=[-0.5, 0.5], colors="none", hatches=["////"], zorder=2)
        if value.min() < 0 < value.max():
            panel.contour(FINE, FINE, value, levels=[0], colors=[INK], linewidths=1.2, zorder=3)
        cells = dots[name][dots[name]["tasks"] == TASKS[number]]
        # Cells with the same place stand side by side.
        nth = cells.groupby(["overlap", "conflict"]).cumcount() * 0.07
        panel.scatter(
            cells["overlap"] + np.where(cells["overlap"] > 0.75, -nth, nth), cells["conflict"], c=cells["response"],
            edgecolors=INK, linewidths=0.7, s=26, zorder=4, clip_on=False, **scale,
        )  # fmt: skip
        panel.grid(visible=False)
        panel.set(xticks=list(OVERLAP.values()), xticklabels=list(OVERLAP))
        panel.set(yticks=list(ANGLES.values()), yticklabels=list(ANGLES))
        panel.set_title(f"{number} tasks, {name}")
    figure.supxlabel(f"prompts that all tasks have in common\n{NOTE}", fontsize=8)
    figure.supylabel("angle between two rewards", fontsize=8)
    bar = figure.colorbar(shade, ax=axes, shrink=0.9, pad=0.01)
    bar.set_label("score of the worse task of a pair: distillation minus joint RL")
    bar.outline.set_visible(False)
    return figure


def main() -> None:
    """Draw the picture beside the outcomes."""
    with drawing():
        figure = phase(complete())
        for kind, dated in (("svg", {"Date": None}), ("png", {})):
            figure.savefig(HERE / f"phase.{kind}", dpi=200, metadata=dated)


if __name__ == "__main__":
    exit_on_error(main)
