"""The model of part 2's response: python results/reference/study/part2/model.py prints the tests on outcomes.csv.

A linear mixed model with a random intercept per cell. As every cell has the same number of seeds, its estimates and
their errors are those of least squares on the cells' means, which is how they are computed. Tests of the protocol's
statements are t-tests of contrasts, with as many degrees of freedom as there are more cells than fixed effects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from design import shares
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.tools import add_constant

from bench.analysis.stats import holm

HERE = Path(__file__).parent
FACTORS = ("overlap", "conflict", "tasks", "rank", "teachers", "budget")
NUISANCES = ("colour", "place", "world 1", "world 2")
"""Contrasts of planes and of worlds, which are 0 averaged over all."""
PRODUCTS = (
    ("overlap", "conflict"),
    ("overlap", "tasks"),
    ("overlap", "rank"),
    ("tasks", "rank"),
    ("conflict", "teachers"),
    ("conflict", "conflict"),
)
OVERLAP = {"none": 0.0, "half": 0.5, "all": 1.0}
CENTRE = {"overlap": 0.5, "conflict": 0.5, "tasks": 0.0, "rank": 0.0, "teachers": 0.0, "budget": 0.0}
"""Where a statement does not name a factor."""
COUNTED, NOT_COUNTED = "teachers counted", "teachers not counted"
RESPONSES = {COUNTED: "joint_long", NOT_COUNTED: "joint"}
CORNER = {"overlap": 1.0, "conflict": 1.0}
"""Where statement 2 is about."""


def coded() -> pd.DataFrame:
    """The cells with their factors as numbers.

    overlap 0 to 1; conflict (1 - cos angle) / 2, 0 to 1; tasks -1, 0, 1; rank -1 (4) and 1 (64); budget -1 (a quarter)
    and 1; teachers, the logarithm to base 2 of the share of updates, plus 1: -1, 0, 1.
    """
    cells = pd.read_csv(HERE / "cells.csv", dtype={"world": str})
    planes = [shares(tuple(text.split("+"))) for text in cells["planes"]]
    worlds = {f"world {one}": (cells["world"] == one) * 1.0 - (cells["world"] == "3") for one in ("1", "2")}
    return pd.DataFrame(
        {
            "cell": cells["cell"],
            "overlap": cells["overlap"].map(OVERLAP),
            "conflict": (1 - np.cos(np.radians(cells["angle"]))) / 2,
            "tasks": (cells["tasks"] - 4) / 2,
            "rank": cells["rank"].map({4: -1.0, 64: 1.0}),
            "budget": cells["budget"].map({0.25: -1.0, 1.0: 1.0}),
            "teachers": np.log2(cells["teachers"]) + 1,
            "colour": [colour for colour, _ in planes],
            "place": [place for _, place in planes],
            **worlds,
        }
    )


def responses(outcomes: pd.DataFrame, against: str, value: str = "pair") -> pd.DataFrame:
    """Distillation minus the line `against`: one row per cell, the mean over its seeds, with the cell's factors.

    Raises ValueError if cells have different numbers of seeds, or if an outcome is not finite.
    """
    wide = outcomes.pivot(index=["cell", "seed"], columns="line", values=value)
    gap = wide["opd"] - wide[against]
    if not np.isfinite(gap).all() or gap.groupby("cell").size().nunique() != 1:
        raise ValueError(f"{value} of opd or {against} is missing, or cells differ in their number of seeds")
    return gap.groupby("cell").mean().rename("response").reset_index().merge(coded(), on="cell")


def fit(data: pd.DataFrame) -> Any:
    """Least squares on the cells' means."""
    return OLS(data["response"], terms(data)).fit()


def terms(data: pd.DataFrame) -> pd.DataFrame:
    """The fixed effects' columns: constant, factors, nuisances, products."""
    columns = {"constant": pd.Series(1.0, data.index)}
    columns |= {name: data[name].astype(float) for name in (*FACTORS, *NUISANCES)}
    return pd.DataFrame(columns | {f"{one} x {other}": data[one] * data[other] for one, other in PRODUCTS})


def predictions(points: pd.DataFrame) -> np.ndarray:
    """The weights of the fixed effects in the predictions at points, [point, effect], averaged over planes and worlds.

    Factors that `points` lacks are in their middle.
    """
    middle = dict.fromkeys(NUISANCES, 0.0) | CENTRE
    return terms(points.assign(**{name: middle[name] for name in middle if name not in points})).to_numpy()


def prediction(**at: float) -> np.ndarray:
    """`predictions` at one point."""
    return predictions(pd.DataFrame([at]))[0]


def change(name: str, by: float, **at: float) -> np.ndarray:
    """The weights in the change of the prediction if a factor, in which the model is linear, is larger by `by`."""
    start = (CENTRE | at)[name]
    return prediction(**at | {name: start + by}) - prediction(**at)


@dataclass(frozen=True)
class Statement:
    """A claim of the protocol: a contrast of one response that is above 0 (sign 1) or below (-1)."""

    name: str
    response: str
    weights: np.ndarray
    sign: int


def statements() -> list[Statement]:
    """The protocol's statements."""
    return [
        Statement("1a without overlap distillation wins", COUNTED, prediction(overlap=0.0), 1),
        Statement("1b more so with more tasks", COUNTED, change("tasks", 1.0, overlap=0.0), 1),
        Statement("1c more so with a lower rank", COUNTED, change("rank", -1.0, overlap=0.0), 1),
        Statement("2 with opposed rewards on the same prompts it loses", COUNTED, prediction(**CORNER), -1),
        Statement("3 with better teachers it gains", NOT_COUNTED, change("teachers", 1.0), 1),
    ]


def estimates(data: pd.DataFrame, weights_CF: Sequence[np.ndarray] | np.ndarray) -> pd.DataFrame:
    """value, 95% interval (low, high) and two-sided p of contrasts of the fixed effects."""
    found = fit(data).t_test(np.asarray(weights_CF))
    low, high = found.conf_int(0.05).T
    return pd.DataFrame({"value": found.effect, "low": low, "high": high, "p": found.pvalue})


def corner(data: pd.DataFrame) -> float:
    """Mean response of the cells with all prompts in common and opposed rewards."""
    there = np.logical_and.reduce([np.isclose(data[name], value) for name, value in CORNER.items()])
    return float(data.loc[there, "response"].mean())


def tests(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The statements with estimates, 95% intervals, two-sided p-values, Holm's correction over all, and verdicts.

    A statement about the corner is undecided if the mean of the corner's own cells has the other sign.
    """
    data = {name: responses(outcomes, line) for name, line in RESPONSES.items()}
    asked = statements()
    table = pd.concat([estimates(data[one.response], [one.weights]) for one in asked], ignore_index=True)
    table.insert(0, "statement", [one.name for one in asked])
    table.insert(1, "response", [one.response for one in asked])
    table["p (Holm)"] = holm(table["p"].tolist())
    sign = np.sign(table["value"])
    sure = table["p (Holm)"] < 0.05
    for place, one in enumerate(asked):
        if np.array_equal(one.weights, prediction(**CORNER)):
            sure[place] &= np.sign(corner(data[one.response])) == sign[place]
    claimed = sign == [one.sign for one in asked]
    table["verdict"] = np.select([sure & claimed, sure & ~claimed], ["holds", "fails"], "undecided")
    return table


def beside(outcomes: pd.DataFrame) -> pd.DataFrame:
    """What is reported beside the verdicts, without tests.

    Contrasts of other responses; distillation minus the other line in diversity and drift, and minus further lines in
    score, over cells, with the interval of a paired t-test; the slope of the response on the teachers' gain.
    """
    rows = []
    for name, line in RESPONSES.items():
        for value in ("pair", "lowest", "mean"):
            data = responses(outcomes, line, value)
            found = estimates(data, [one.weights for one in statements()])
            rows += [
                (f"{one.name}, {value}", name, *row)
                for one, row in zip(statements(), found[["value", "low", "high"]].itertuples(index=False))
            ]
            rows.append((f"the corner's own cells, {value}", name, corner(data), np.nan, np.nan))
        rows += [
            (f"{value}, all cells", name, *_mean(responses(outcomes, line, value))) for value in ("diversity", "drift")
        ]
    for line in ("rule", "soup", "shared"):
        has = outcomes[outcomes["line"] == line]["cell"]
        data = responses(outcomes[outcomes["cell"].isin(has)], line)
        rows.append((f"pair, {len(data)} cells", f"{line} in the place of joint", *_mean(data)))
    gain = outcomes.pivot(index=["cell", "seed"], columns="line", values="pair").groupby("cell").mean()
    data = responses(outcomes, RESPONSES[NOT_COUNTED])
    taught = OLS(
        data["response"], add_constant((gain["teachers"] - gain["base"]).rename("gain")[data["cell"]].to_numpy())
    ).fit()
    rows.append(("slope on what the teachers gained", NOT_COUNTED, taught.params.iloc[1], *taught.conf_int().iloc[1]))
    return pd.DataFrame(rows, columns=["quantity", "response", "value", "low", "high"])


def _mean(data: pd.DataFrame) -> tuple[float, float, float]:
    """Mean response over cells with the 95% interval of a t-test."""
    gap = data["response"]
    reach = stats.t.ppf(0.975, len(gap) - 1) * gap.std() / np.sqrt(len(gap))
    return gap.mean(), gap.mean() - reach, gap.mean() + reach


def main() -> None:
    """Print the tests, and what is reported beside them."""
    outcomes = pd.read_csv(HERE / "outcomes.csv")
    count, cells = outcomes["cell"].nunique(), len(coded())
    if count < cells:
        print(f"{count} of {cells} cells have finished: nothing is decided before all have")
    print(tests(outcomes).round(4).to_string(index=False), end="\n\n")
    print(beside(outcomes).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
