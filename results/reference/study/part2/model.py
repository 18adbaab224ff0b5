"""The model of part 2's response: python results/reference/study/part2/model.py prints the tests on outcomes.csv.

A linear mixed model with a random intercept per cell. Tests of the protocol's three statements are t-tests of
contrasts, with as many degrees of freedom as there are more cells than fixed effects.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.multitest import multipletests
from statsmodels.tools.sm_exceptions import ConvergenceWarning

HERE = Path(__file__).parent
FACTORS = ("overlap", "conflict", "tasks", "rank", "teachers", "budget")
PRODUCTS = (
    ("overlap", "conflict"),
    ("overlap", "tasks"),
    ("tasks", "rank"),
    ("conflict", "teachers"),
    ("conflict", "conflict"),
)
OVERLAP = {"none": 0.0, "half": 0.5, "all": 1.0}
CENTRE = {"overlap": 0.5, "conflict": 0.5, "tasks": 0.0, "rank": 0.0, "teachers": 0.0, "budget": 0.0}
"""Where a statement does not name a factor."""
WORLDS = ("1", "2", "3")
RESPONSES = {"teachers counted": "joint_long", "teachers not counted": "joint"}


def coded() -> pd.DataFrame:
    """The cells with their factors as numbers.

    overlap 0 to 1; conflict (1 - cos angle) / 2, 0 to 1; tasks -1, 0, 1; rank -1 (4) and 1 (64); budget -1 (a quarter)
    and 1; teachers, the logarithm to base 2 of the share of updates, plus 1: -1, 0, 1.
    """
    cells = pd.read_csv(HERE / "cells.csv", dtype={"world": str})
    return pd.DataFrame(
        {
            "cell": cells["cell"],
            "overlap": cells["overlap"].map(OVERLAP),
            "conflict": (1 - np.cos(np.radians(cells["angle"]))) / 2,
            "tasks": (cells["tasks"] - 4) / 2,
            "rank": cells["rank"].map({4: -1.0, 64: 1.0}),
            "budget": cells["budget"].map({0.25: -1.0, 1.0: 1.0}),
            "teachers": np.log2(cells["teachers"]) + 1,
            "world": cells["world"],
        }
    )


def responses(outcomes: pd.DataFrame, against: str, value: str = "worst") -> pd.DataFrame:
    """Distillation minus the line `against`, by cell and seed, with the cell's factors."""
    wide = outcomes.pivot(index=["cell", "seed"], columns="line", values=value)
    gap = (wide["opd"] - wide[against]).rename("response").reset_index()
    return gap.merge(coded(), on="cell")


def fit(data: pd.DataFrame) -> Any:
    """The mixed model, by restricted maximum likelihood."""
    with warnings.catch_warnings():
        # A variance between cells that is estimated as 0 is at the edge of its range, and as good as any other.
        warnings.filterwarnings("ignore", "The MLE may be on the boundary", ConvergenceWarning)
        return MixedLM(data["response"], terms(data), groups=data["cell"]).fit(reml=True)


def terms(data: pd.DataFrame) -> pd.DataFrame:
    """The fixed effects' columns: factors, products, and two contrasts of worlds, which are 0 averaged over all."""
    columns = {"constant": pd.Series(1.0, data.index)} | {name: data[name].astype(float) for name in FACTORS}
    columns |= {f"{one} x {other}": data[one] * data[other] for one, other in PRODUCTS}
    *others, last = WORLDS
    for world in others:
        columns[f"world {world}"] = (data["world"] == world).astype(float) - (data["world"] == last).astype(float)
    return pd.DataFrame(columns)


def prediction(worlds: Sequence[str] = WORLDS, **at: float) -> np.ndarray:
    """The weights of the fixed effects in the prediction at a point, averaged over worlds."""
    points = pd.DataFrame([CENTRE | at | {"world": world} for world in worlds])
    return terms(points).mean().to_numpy()


def predicted(data: pd.DataFrame, weights_CF: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(value, half the width of its 95% interval, two-sided p-value), each [C], of contrasts of the fixed effects."""
    model = fit(data)
    names = model.fe_params.index
    covariance = model.cov_params().loc[names, names].to_numpy()
    freedom = data["cell"].nunique() - len(names)
    value_C = weights_CF @ model.fe_params.to_numpy()
    error_C = np.sqrt(np.einsum("cf,fg,cg->c", weights_CF, covariance, weights_CF))
    return value_C, stats.t.ppf(0.975, freedom) * error_C, 2 * stats.t.sf(np.abs(value_C) / error_C, freedom)


def change(name: str, by: float, **at: float) -> np.ndarray:
    """The weights in the change of the prediction if a factor, in which the model is linear, is larger by `by`."""
    start = (CENTRE | at)[name]
    return prediction(**at | {name: start + by}) - prediction(**at)


def statements() -> dict[str, tuple[np.ndarray, int]]:
    """The protocol's statements as contrasts: name -> (weights, claimed sign)."""
    return {
        "1 without overlap distillation wins": (prediction(overlap=0.0), 1),
        "1 more so with more tasks": (change("tasks", 1.0, overlap=0.0), 1),
        "1 more so with a lower rank": (change("rank", -1.0, overlap=0.0), 1),
        "2 with opposed rewards on the same prompts it loses": (prediction(overlap=1.0, conflict=1.0), -1),
        "3 with better teachers it gains": (change("teachers", 1.0), 1),
    }


def tests(data: pd.DataFrame) -> pd.DataFrame:
    """Estimates of the statements' contrasts, 95% intervals, two-sided p-values and Holm's correction over the five."""
    weights, signs = zip(*statements().values())
    value, half, p = predicted(data, np.stack(weights))
    table = pd.DataFrame(
        {"statement": list(statements()), "value": value, "low": value - half, "high": value + half, "p": p}
    )
    table["p (Holm)"] = multipletests(table["p"], method="holm")[1]
    claimed = np.sign(table["value"]) == signs
    sure = table["p (Holm)"] < 0.05
    table["verdict"] = np.select([sure & claimed, sure & ~claimed], ["holds", "fails"], "undecided")
    return table


def main() -> None:
    """Print the tests for both responses."""
    outcomes = pd.read_csv(HERE / "outcomes.csv")
    for name, line in RESPONSES.items():
        print(f"worst task, distillation minus joint RL, {name}")
        print(tests(responses(outcomes, line)).round(4).to_string(index=False), end="\n\n")


if __name__ == "__main__":
    main()
