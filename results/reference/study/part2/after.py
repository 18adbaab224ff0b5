"""What was thought of after the outcomes of part 2 were known: none of it was stated in advance."""

from typing import Any

import numpy as np
import pandas as pd
from beside import mean_over_cells
from model import CORNER, NOT_COUNTED, RESPONSES, coded, gaps, in_corner

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
    opposed = np.isclose(cells["conflict"], CORNER["conflict"])
    common = np.isclose(cells["overlap"], CORNER["overlap"])
    outside = ~in_corner(cells)
    rows: list[tuple[str, str, Any, Any, Any]] = []

    def gap(kept: np.ndarray, line: str, against: str, value: str = "pair") -> pd.Series:
        # Only then compared, because not all cells have all lines.
        return gaps(outcomes[outcomes["cell"].isin(cells.index[kept])], line, against, value)

    def add(where: str, kept: np.ndarray, response: str, against: str, value: str = "pair") -> None:
        found = gap(kept, "opd", against, value)
        said = f"{where}, {value} ({len(found)}, distillation above in {(found > 0).sum()})"
        rows.append((said, response, *mean_over_cells(found)))

    for name, line in RESPONSES.items():
        for value in ("pair", "lowest", "mean"):
            add("all cells", np.full(len(cells), True), name, line, value)
            add("opposed rewards", opposed, name, line, value)
            add("other angles", ~opposed, name, line, value)
        add("a quarter of the budget", cells["budget"].to_numpy() < 0, name, line)
        add("the whole budget", cells["budget"].to_numpy() > 0, name, line)
    add("all of the teachers' updates", cells["teachers"].to_numpy() > 0, NOT_COUNTED, RESPONSES[NOT_COUNTED])
    add("all prompts in common, not opposed", common & ~opposed, "shared in the place of joint", "shared")
    found = gap(common, "shared", "joint_long")
    rows.append((f"all prompts in common, pair ({len(found)})", "shared minus long joint RL", *mean_over_cells(found)))
    for line in ("opd", "teachers", "joint", "joint_long"):
        gain = gap(outside, line, "base")
        said = f"gain over the base outside the corner ({len(gain)}), pair"
        rows.append((said, LEVELS[line], gain.mean(), np.nan, np.nan))
    return pd.DataFrame(rows, columns=["quantity", "response", "value", "low", "high"])
