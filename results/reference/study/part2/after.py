"""What was thought of after the outcomes of part 2 were known: none of it was stated in advance."""

from typing import Any

import numpy as np
import pandas as pd
from beside import mean_over_cells
from model import NOT_COUNTED, RESPONSES, coded, in_corner

LEVELS = {
    "base": "the base",
    "opd": "distillation",
    "teachers": "the teachers",
    "soup": "the soup",
    "joint": "joint RL",
    "joint_long": "long joint RL",
}
CORNER_LEVEL, MEDIAN_DRIFT = "pair in the corner", "median drift"


def levels(outcomes: pd.DataFrame) -> pd.DataFrame:
    """A row per line: means over cells of the score, in the corner too, of diversity and drift, and drift's median."""
    design = coded()
    cornered = outcomes["cell"].isin(design.loc[in_corner(design), "cell"])
    found = outcomes.groupby("line")[["pair", "diversity", "drift"]].mean()
    found[CORNER_LEVEL] = outcomes[cornered].groupby("line")["pair"].mean()
    found[MEDIAN_DRIFT] = outcomes.groupby(["line", "cell"])["drift"].mean().groupby("line").median()
    return found.loc[list(LEVELS), ["pair", CORNER_LEVEL, "diversity", "drift", MEDIAN_DRIFT]]


def after(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Differences over some of the cells, with the interval of a paired t-test, and gains of lines over the base."""
    cells = coded().set_index("cell")
    opposed, shared = cells["conflict"] > 0.9, cells["overlap"] > 0.9
    rows: list[tuple[str, str, Any, Any, Any]] = []

    def add(where: str, kept: pd.Series, response: str, gap: pd.Series) -> None:
        gap = gap[kept]
        said = f"{where} ({len(gap)}, distillation above in {(gap > 0).sum()})"
        rows.append((said, response, *mean_over_cells(gap)))

    for name, line in RESPONSES.items():
        for value in ("pair", "lowest", "mean"):
            gap = _gap(outcomes, "opd", line, value)
            add(f"all cells, {value}", cells["tasks"] < np.inf, name, gap)
            add(f"opposed rewards, {value}", opposed, name, gap)
            add(f"other angles, {value}", ~opposed, name, gap)
        gap = _gap(outcomes, "opd", line)
        add("a quarter of the budget, pair", cells["budget"] < 0, name, gap)
        add("the whole budget, pair", cells["budget"] > 0, name, gap)
    add("all of the teachers' updates, pair", cells["teachers"] > 0, NOT_COUNTED, _gap(outcomes, "opd", "joint"))
    of_shared = "shared in the place of joint"
    add("all prompts in common, not opposed, pair", shared & ~opposed, of_shared, _gap(outcomes, "opd", "shared"))
    rows.append(
        (
            f"all prompts in common, pair ({shared.sum()})",
            "shared minus long joint RL",
            *mean_over_cells(_gap(outcomes, "shared", "joint_long")[shared]),
        )
    )
    outside = ~pd.Series(in_corner(cells), cells.index)
    for line in ("opd", "teachers", "joint", "joint_long"):
        gain = _gap(outcomes, line, "base")[outside].mean()
        rows.append(
            (f"gain over the base outside the corner ({outside.sum()}), pair", LEVELS[line], gain, np.nan, np.nan)
        )
    return pd.DataFrame(rows, columns=["quantity", "response", "value", "low", "high"])


def _gap(outcomes: pd.DataFrame, line: str, against: str, value: str = "pair") -> pd.Series:
    """One line minus another, by cell, the mean over its seeds; without the cells that lack one of them."""
    wide = outcomes.pivot(index=["cell", "seed"], columns="line", values=value)
    return (wide[line] - wide[against]).groupby("cell").mean()
