"""What is reported beside part 2's tests, without tests of its own, and the price at which distillation wins."""

from typing import Any

import numpy as np
import pandas as pd
from model import (
    CORNER,
    CORNERED,
    COUNTED,
    FACTORS,
    RESPONSES,
    coded,
    corner,
    estimates,
    gaps,
    in_corner,
    prediction,
    responses,
    statements,
)
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.tools import add_constant

SENSITIVITY = {
    "with products of the budget": tuple(("budget", name) for name in FACTORS if name != "budget"),
    "with rank x teachers": (("rank", "teachers"),),
    "with conflict x rank": (("conflict", "rank"),),
    "with tasks x teachers": (("tasks", "teachers"),),
    "with teachers x teachers": (("teachers", "teachers"),),
    "with overlap x conflict x conflict": (("overlap", "conflict", "conflict"),),
}
"""Products that the model leaves out, with which the contrasts are estimated again."""
RIGHT_ANGLE = {"overlap": 1.0, "conflict": 0.5}
"""Where rewards are independent on the same prompts, so that images can leave the Pareto front."""
OWN = f"{CORNERED}, mean of its own cells"


def price(outcomes: pd.DataFrame) -> list[str]:
    """What counts against distillation beside a verdict: less diversity or more drift than the long line.

    The mean over all cells, with a 95% interval of a paired t-test that excludes 0. A win is called one at this price.
    """
    found = []
    for value, against in (("diversity", -1), ("drift", 1)):
        mean, low, high = mean_over_cells(responses(outcomes, RESPONSES[COUNTED], value)["response"])
        if min(low * against, high * against) > 0:
            word = "less" if against < 0 else "more"
            found.append(f"{word} {value} than long joint RL over all cells, {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    return found


def beside(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What is reported beside the verdicts, without tests.

    Contrasts of other responses and with further products; what opposed rewards, and rewards at a right angle, do to
    images; distillation minus the other line in diversity and drift, and minus further lines in score, over cells, with
    the interval of a paired t-test; and what distillation gains where its teachers gain more.
    """
    rows: list[tuple[str, str, Any, Any, Any]] = []

    def add(quantity: str, response: str, found: pd.DataFrame) -> None:
        rows.extend((quantity, response, *row) for row in found[["value", "low", "high"]].itertuples(index=False))

    for name, line in RESPONSES.items():
        for value in ("pair", "lowest", "mean"):
            data = responses(outcomes, line, value)
            for one in statements():
                if (value, name) != ("pair", one.response):  # these are the tests
                    add(f"{one.contrast}, {value}", name, estimates(data, [one.weights]))
            rows.append((f"{OWN}, {value}", name, corner(data), np.nan, np.nan))
            add(f"at a right angle on the same prompts, {value}", name, estimates(data, [prediction(**RIGHT_ANGLE)]))
        data = responses(outcomes, line)
        for more, further in SENSITIVITY.items():
            for one in statements(further):
                if one.response == name:
                    add(f"{one.contrast}, pair, {more}", name, estimates(data, [one.weights], further))
        for one in statements():
            if one.response == name:
                add(f"{one.contrast}, pair, with HC3 errors", name, estimates(data, [one.weights], errors="HC3"))
        for value in ("extremity", "diversity", "drift"):
            data = responses(outcomes, line, value)
            add(f"{CORNERED}, {value}", name, estimates(data, [prediction(**CORNER)]))
            rows.append((f"mean over all cells, {value}", name, *mean_over_cells(data["response"])))
    for line in ("rule", "soup", "shared"):
        has = outcomes[outcomes["line"] == line]["cell"]
        data = responses(outcomes[outcomes["cell"].isin(has)], line)
        response = f"{line} in the place of joint"
        # Too few cells have all prompts in common for the model.
        for one in statements() if line != "shared" else ():
            add(f"{one.contrast}, pair", response, estimates(data, [one.weights]))
        rows.append((f"mean over {len(data)} cells, pair", response, *mean_over_cells(data["response"])))
    design = coded()
    cornered = outcomes[outcomes["cell"].isin(design.loc[in_corner(design), "cell"])]
    for line in ("opd", *RESPONSES.values(), "base"):
        level = cornered.loc[cornered["line"] == line, "extremity"].mean()
        rows.append((f"{OWN}, extremity", f"of {line} itself", level, np.nan, np.nan))
    for quantity, row in zip(("gain without a gain of the teachers", "slope on the teachers' gain"), kept(outcomes)):
        rows.append((f"{quantity}, cells outside the corner", "distillation minus the base", *row))
    return pd.DataFrame(rows, columns=["quantity", "response", "value", "low", "high"])


def kept(outcomes: pd.DataFrame) -> list[tuple[float, float, float]]:
    """Intercept and slope of distillation's gain over the base on its teachers' gain, with 95% intervals.

    In the corner no student can have what both teachers of a pair have, so that its cells are left out. A student that
    keeps a constant share of what its teachers gained has an intercept of 0.
    """
    gained = responses(outcomes, "base")
    gained = gained[~in_corner(gained)]
    gain = gaps(outcomes, "teachers", "base")[gained["cell"]].to_numpy()
    found = OLS(gained["response"].to_numpy(), add_constant(gain)).fit()
    return [(value, *ends) for value, ends in zip(found.params, found.conf_int())]


def mean_over_cells(gap: pd.Series) -> tuple[float, float, float]:
    """Mean of a difference over cells with the 95% interval of a t-test."""
    reach = stats.t.ppf(0.975, len(gap) - 1) * gap.std() / np.sqrt(len(gap))
    return gap.mean(), gap.mean() - reach, gap.mean() + reach
