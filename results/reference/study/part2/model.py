"""The model of part 2's response, and the tests of what was stated in advance.

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
from cell import cells, seeds
from design import shares
from statsmodels.regression.linear_model import OLS

from bench.analysis.stats import holm
from bench.errors import MissingError, UsageError

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
"""What statement 2 is about."""
CORNERED = "opposed rewards on the same prompts"


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


def complete(path: Path = HERE / "outcomes.csv") -> pd.DataFrame:
    """The outcomes. Raises UsageError if one of a cell's two seeds is missing: before, a look would be a choice.

    Raises MissingError without any.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing: part2/outcomes.py writes it from the cells' runs")
    outcomes = pd.read_csv(path)
    found = set(outcomes[["cell", "seed"]].itertuples(index=False, name=None))
    wanted = {(int(cell["cell"]), seed) for cell in cells() for seed in seeds(cell)}
    if found != wanted:
        raise UsageError(
            f"{len(found & wanted)} of {len(wanted)} pairs of cell and seed are there: nothing is decided before all"
        )
    return outcomes


def responses(outcomes: pd.DataFrame, against: str, value: str = "pair") -> pd.DataFrame:
    """Distillation minus the line `against`: one row per cell, as `gaps`, with the cell's factors."""
    return gaps(outcomes, "opd", against, value).rename("response").reset_index().merge(coded(), on="cell")


def gaps(outcomes: pd.DataFrame, line: str, against: str, value: str = "pair") -> pd.Series:
    """One line minus another: by cell, the mean over its seeds.

    Raises ValueError if cells have different numbers of seeds, or if an outcome is not finite.
    """
    wide = outcomes.pivot(index=["cell", "seed"], columns="line", values=value)
    gap = wide[line] - wide[against]
    if not np.isfinite(gap).all() or gap.groupby("cell").size().nunique() != 1:
        raise ValueError(f"{value} of {line} or {against} is missing, or cells differ in their number of seeds")
    return gap.groupby("cell").mean()


Products = tuple[tuple[str, ...], ...]


def fit(data: pd.DataFrame, further: Products = (), errors: str = "nonrobust") -> Any:
    """Least squares on the cells' means, with `further` products; with `errors` "HC3", cells may differ in variance."""
    return OLS(data["response"], terms(data, further)).fit(cov_type=errors, use_t=True)


def terms(data: pd.DataFrame, further: Products = ()) -> pd.DataFrame:
    """The fixed effects' columns: constant, factors, nuisances, products."""
    columns = {"constant": pd.Series(1.0, data.index)}
    columns |= {name: data[name].astype(float) for name in (*FACTORS, *NUISANCES)}
    products = (*PRODUCTS, *further)
    return pd.DataFrame(columns | {" x ".join(names): data[list(names)].prod(axis=1) for names in products})


def predictions(points: pd.DataFrame, further: Products = ()) -> np.ndarray:
    """The weights of the fixed effects in the predictions at points, [point, effect], averaged over planes and worlds.

    Factors that `points` lacks are in their middle.
    """
    middle = dict.fromkeys(NUISANCES, 0.0) | CENTRE
    points = points.assign(**{name: middle[name] for name in middle if name not in points})
    return terms(points, further).to_numpy()


def prediction(further: Products = (), **at: float) -> np.ndarray:
    """`predictions` at one point."""
    return predictions(pd.DataFrame([at]), further)[0]


def change(name: str, by: float, further: Products = (), **at: float) -> np.ndarray:
    """The weights in the change of the prediction per step `by` of a factor, from a step below to a step above."""
    start = (CENTRE | at)[name]
    above, below = (prediction(further, **at | {name: start + step}) for step in (by, -by))
    return (above - below) / 2


@dataclass(frozen=True)
class Statement:
    """A claim of the protocol: a contrast of one response that is above 0 (sign 1) or below (-1)."""

    name: str
    contrast: str
    """What the estimate is, whatever its sign."""
    response: str
    weights: np.ndarray
    sign: int


def statements(further: Products = ()) -> list[Statement]:
    """The protocol's statements, with weights for a model with `further` products."""
    alone = {"overlap": 0.0}
    tasks, rank = change("tasks", 1.0, further, **alone), change("rank", -1.0, further, **alone)
    teachers, opposed = change("teachers", 1.0, further), prediction(further, **CORNER)
    return [
        Statement("1a without overlap distillation wins", "no overlap", COUNTED, prediction(further, **alone), 1),
        Statement("1b more so with more tasks", "two more tasks, no overlap", COUNTED, tasks, 1),
        Statement("1c more so with a lower rank", "a quarter of the rank, no overlap", COUNTED, rank, 1),
        Statement("2 with opposed rewards on the same prompts it loses", CORNERED, COUNTED, opposed, -1),
        Statement(
            "3, its direction: with better teachers it gains", "twice the teachers' updates", NOT_COUNTED, teachers, 1
        ),
    ]


def estimates(
    data: pd.DataFrame,
    weights_CF: Sequence[np.ndarray] | np.ndarray,
    further: Products = (),
    errors: str = "nonrobust",
) -> pd.DataFrame:
    """value, 95% interval (low, high) and two-sided p of contrasts of the fixed effects; arguments as in `fit`."""
    found = fit(data, further, errors).t_test(np.asarray(weights_CF))
    low, high = found.conf_int(0.05).T
    return pd.DataFrame({"value": found.effect, "low": low, "high": high, "p": found.pvalue})


def corner(data: pd.DataFrame) -> float:
    """Mean response of the cells with all prompts in common and opposed rewards."""
    return float(data.loc[in_corner(data), "response"].mean())


def in_corner(data: pd.DataFrame) -> np.ndarray:
    """Whether each cell has all prompts in common and opposed rewards."""
    return np.logical_and.reduce([np.isclose(data[name], value) for name, value in CORNER.items()])


def tests(outcomes: pd.DataFrame) -> pd.DataFrame:
    """The statements with estimates, 95% intervals, two-sided p-values, Holm's correction over all, and verdicts.

    A statement about the corner is undecided if the mean of the corner's own cells has the other sign.
    """
    data = {name: responses(outcomes, line) for name, line in RESPONSES.items()}
    asked = statements()
    table = pd.concat([estimates(data[one.response], [one.weights]) for one in asked], ignore_index=True)
    table.insert(0, "statement", [one.name for one in asked])
    table.insert(1, "response", [one.response for one in asked])
    table.insert(2, "contrast", [one.contrast for one in asked])
    table["p (Holm)"] = holm(table["p"].tolist())
    sign = np.sign(table["value"])
    sure = table["p (Holm)"] < 0.05
    for place, one in enumerate(asked):
        if np.array_equal(one.weights, prediction(**CORNER)):
            sure[place] &= np.sign(corner(data[one.response])) == sign[place]
    claimed = sign == [one.sign for one in asked]
    table["verdict"] = np.select([sure & claimed, sure & ~claimed], ["holds", "fails"], "undecided")
    return table


def first_statement(table: pd.DataFrame) -> str:
    """The verdict on statement 1: it holds if all three of its contrasts do, and fails if one fails."""
    verdicts = table.loc[table["statement"].str.startswith("1"), "verdict"]
    return "holds" if (verdicts == "holds").all() else "fails" if (verdicts == "fails").any() else "undecided"
