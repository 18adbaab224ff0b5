"""The results of part 2: python results/reference/study/part2/page.py writes results.md from outcomes.csv.

The tests of the protocol's statements, what is reported beside them, and every cell with the model's prediction and
what its lines spent.
"""

import numpy as np
import pandas as pd
from model import HERE, RESPONSES, beside, complete, first_statement, fit, responses, tests

from bench.analysis.stats import Estimate
from bench.errors import exit_on_error
from bench.system.files import write_atomic
from report.table import Column, Row, Table

DEVIATES = 3.0
"""Externally studentised residual, in magnitude, from which on a cell is named."""
DESIGN = ("cell", "overlap", "angle", "tasks", "rank", "budget", "teachers", "world", "planes")
SPENT = {"opd": "distillation", "joint": "joint RL", "joint_long": "long joint RL", "rule": "rule"}
MODEL = (
    "A response is distillation minus joint RL in the lower score of each pair of tasks, averaged over the cell's "
    "pairs and two seeds; teachers are counted where joint RL has their budget too. The model is that of PROTOCOL.md: "
    "a linear mixed model with a random intercept for each cell."
)


def tested(outcomes: pd.DataFrame) -> Table:
    """The protocol's statements."""
    columns = [
        Column("statement", "statement"),
        Column("response", "response"),
        Column("estimate", "estimate", "change"),
        Column("p (Holm)", "p (Holm)", "p"),
        Column("verdict", "verdict"),
    ]
    rows: list[Row] = [row | {"estimate": _estimate(row)} for row in tests(outcomes).to_dict("records")]
    return Table("tests", "Statements made in advance", f"{MODEL} Intervals are 95%, not corrected.", columns, rows)


def further(outcomes: pd.DataFrame) -> Table:
    """What the protocol reports beside its statements."""
    columns = [
        Column("quantity", "quantity"),
        Column("response", "response"),
        Column("estimate", "estimate", "change"),
    ]
    rows: list[Row] = [row | {"estimate": _estimate(row)} for row in beside(outcomes).to_dict("records")]
    note = (
        "Contrasts as above of other values, and with products that the model leaves out; `pair` is the response, "
        "`lowest` the lowest score of all tasks, `mean` their mean, `extremity` the mean distance of an image's score "
        "from 1/2. Intervals are 95%, not corrected, and nothing here was tested."
    )
    return Table("beside", "Beside the statements", note, columns, rows)


def every_cell(outcomes: pd.DataFrame) -> Table:
    """The cells with both responses, what the model leaves of them, and the training NFE of their lines."""
    found = pd.read_csv(HERE / "cells.csv").set_index("cell", drop=False)
    columns = [Column(name, name) for name in DESIGN]
    remarks = []
    for name, line in RESPONSES.items():
        data = responses(outcomes, line).set_index("cell")
        model = fit(data.reset_index())
        found[name], found[f"{name} left"] = data["response"], pd.Series(model.resid.to_numpy(), data.index)
        columns += [Column(name, name, "change"), Column(f"{name} left", "left by the model", "change")]
        far = data.index[np.abs(model.get_influence().resid_studentized_external) > DEVIATES]
        which = f"cells {', '.join(map(str, far))} deviate" if len(far) else "no cell deviates"
        remarks.append(f"{name}: {which} by more than {DEVIATES:g} standard errors from the model without it")
    for line, title in SPENT.items():
        found[f"nfe {line}"] = outcomes[outcomes["line"] == line].groupby("cell")["nfe"].mean()
        columns.append(Column(f"nfe {line}", f"NFE of {title}", "count"))
    note = f"Means of two seeds. {'; '.join(remarks)}. NFE are those of training, without the teachers'."
    return Table("cells", "Cells", note, columns, found.to_dict("records"))


def page(outcomes: pd.DataFrame) -> str:
    """The page in Markdown."""
    first = first_statement(tests(outcomes))
    parts = [
        "# When does distillation beat joint RL?",
        "Part 2 of the study, in drawn worlds of 32x32 pixels with a model of 2.3 M parameters; it says nothing about "
        "large models. [The protocol](../PROTOCOL.md) was committed before any of these runs.",
        f"![Where distillation beats joint RL](phase.png)\n\nStatement 1 as a whole: {first}.",
    ]
    for table in (tested(outcomes), further(outcomes), every_cell(outcomes)):
        parts.append(f"## {table.title}\n\n{table.markdown()}\n{table.note}")
    return "\n\n".join(parts) + "\n"


def _estimate(row: Row) -> Estimate:
    return Estimate(row["value"], row["low"], row["high"])


def main() -> None:
    """Write the page."""
    path = HERE / "results.md"
    write_atomic(path, page(complete()).encode())
    print(path)


if __name__ == "__main__":
    exit_on_error(main)
