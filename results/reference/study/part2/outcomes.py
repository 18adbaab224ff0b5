"""Outcomes of part 2's runs: python results/reference/study/part2/outcomes.py results/study/part2 writes outcomes.csv.

One row per cell, seed and line, and one for the base: the lowest and the mean score of the cell's tasks, and of
the measures (bench/training/measures.py) the means over tasks.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis.metric_names import DIVERSITY, DRIFT
from bench.results import Result, results, scores

HERE = Path(__file__).parent
BASE = "base"


def line_of(run: Result) -> str | None:
    """The line of a run, by its settings; None for a teacher."""
    spec = run.spec
    if spec["method"] == "single_task":
        return None
    if spec["method"] != "multi_reward":
        return {"opd_analytic": "opd", "merge": "soup"}[spec["method"]]
    return "joint" if spec["params"]["combine"] == "sum" else "rule"


def outcomes(root: Path) -> pd.DataFrame:
    """The table. Of two joint lines of a cell and seed the one with the larger budget is `joint_long`."""
    rows: list[dict[str, Any]] = []
    for folder in sorted(root.glob("cell-*")):
        cell = int(folder.name.removeprefix("cell-"))
        for run in results(folder):
            summary, own = run.summary, line_of(run)
            if summary is None or own is None:
                continue
            found = scores([run])
            models = {own: "student"} | ({BASE: BASE} if own == "joint" else {})
            for line, model in models.items():
                of_model = found[found["model"] == model]
                tasks = of_model[of_model["headline"]].groupby("task")["value"].mean()
                means = of_model.groupby("metric")["value"].mean()
                diversity = means[[name.startswith(f"{DIVERSITY}@") for name in means.index]]
                rows.append(
                    {
                        "cell": cell,
                        "seed": run.spec["seed"],
                        "line": line,
                        "nfe": summary["cost"]["evaluations"].get("training", 0) if line != BASE else 0,
                        "worst": tasks.min(),
                        "mean": tasks.mean(),
                        "diversity": diversity.mean(),
                        "drift": means.get(DRIFT, 0.0 if line == BASE else float("nan")),
                    }
                )
    table = pd.DataFrame(rows).drop_duplicates(["cell", "seed", "line", "nfe"])
    joint = table[table["line"] == "joint"]
    shortest = joint.groupby(["cell", "seed"])["nfe"].transform("min")
    table.loc[joint.index[joint["nfe"] > shortest], "line"] = "joint_long"
    return table.sort_values(["cell", "seed", "line"], ignore_index=True)


if __name__ == "__main__":
    outcomes(Path(sys.argv[1])).round(6).to_csv(HERE / "outcomes.csv", index=False)
