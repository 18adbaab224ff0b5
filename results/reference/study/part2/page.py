"""The results of part 2: python results/reference/study/part2/page.py writes results.md from outcomes.csv.

The tests of the protocol's statements, what is reported beside them, and every cell with what the model leaves of it
and what its lines spent.
"""

import numpy as np
import pandas as pd
from after import LEVELS, after, levels
from beside import beside, price
from model import COUNTED, HERE, RESPONSES, complete, first_statement, fit, responses, tests
from outcomes import failures

from bench.analysis.stats import Estimate
from bench.errors import exit_on_error
from bench.system.files import write_atomic
from report.table import Column, Row, Table

DEVIATES = 3.0
"""Externally studentised residual, in magnitude, from which on a cell is named."""
DESIGN = ("cell", "overlap", "angle", "tasks", "rank", "budget", "teachers", "world", "planes")
SPENT = {
    "opd": "distillation",
    "teachers": "all teachers",
    "joint": "joint RL",
    "joint_long": "long joint RL",
    "rule": "rule",
    "shared": "shared",
}
HEAD = """\
# When does distillation beat joint RL?

Part 2 of the study, in drawn worlds of 32x32 pixels with a model of 2.3 M parameters; it says nothing about large
models. The statements and their tests were fixed in [the protocol](../PROTOCOL.md) before the first run of part 2; its
amendments say what had been seen when.

![Where distillation beats joint RL](phase.png)

A task is a taste: a known preference for attributes of the shapes in a picture. Tasks come in pairs, and the angle is
that between the two rewards of a pair; at 0 degrees with all prompts in common a pair is one task. The response is
distillation minus joint RL in the lower score of each pair, averaged over the cell's pairs and two seeds; scores are at
guidance 1. With teachers counted, joint RL has their budget too (`joint_long`); without, it has the student's
(`joint`). Test prompts and images are not resampled."""
TESTED = (
    "Contrasts of a linear mixed model with a random intercept for each cell. Factors that a contrast does not name "
    "are in their middle: half of the prompts in common, 90 degrees, 4 tasks, rank 16, half of the budget, half of "
    "the teachers' updates (the last three on logarithmic scales); planes and worlds are averaged. Intervals are "
    "95%, not corrected. Opposed scores on the same prompts add up to 1, so that statement 2 has little room. "
    "Statement 3 is that the advantage falls in proportion to what the teachers lost, of which the test is the "
    "direction; a constant share would have, at the end of the next table, an intercept of 0."
)
BESIDE = (
    "Nothing here was tested. `pair` is the response, `lowest` the lowest score of all tasks, `mean` their mean, "
    "`extremity` the mean distance of an image's score from 1/2; all but what is `of LINE itself` are distillation "
    "minus another line. Contrasts are the model's, with Student's t for 19 degrees of freedom (14 with products of "
    "the budget, 18 with any other), and with HC3 errors cells may differ in variance; means over cells have a paired "
    "t-test's interval, and the last two rows are a regression over cells outside the corner of opposed rewards on "
    "the same prompts. Intervals are 95%, not corrected. `rule` is joint RL with the best rule for combining "
    "gradients, `soup` the mean of the teachers' adapters, and `shared`, only where all prompts are in common, joint "
    "RL whose images are scored by all tasks."
)
AFTER = (
    "Exploratory: none of this was announced. Means over cells, how many they are in brackets, with a paired t-test's "
    "interval (95%, not corrected), of distillation minus joint RL or what `response` says; gains over the base have "
    "none. The corner are the cells with opposed rewards and all prompts in common, where `shared` has no signal."
)
LEVEL = "Means over all cells, or those of the corner, and seeds, and the median of the cells' drift. Exploratory."


def tested(found: pd.DataFrame, paid: list[str]) -> Table:
    """The protocol's statements with their tests; a win of distillation is called one at the price that it has."""
    columns = [
        Column("statement", "statement"),
        Column("response", "response"),
        Column("contrast", "contrast"),
        Column("estimate", "estimate", "change"),
        Column("p (Holm)", "p (Holm)", "p"),
        Column("verdict", "verdict"),
    ]
    rows: list[Row] = []
    for row in found.to_dict("records"):
        won = row["response"] == COUNTED and row["value"] > 0
        rows.append(row | {"estimate": _estimate(row), "verdict": _priced(row["verdict"], paid if won else [])})
    return Table("tests", "Statements made in advance", TESTED, columns, rows)


def further(outcomes: pd.DataFrame) -> Table:
    """What the protocol reports beside its statements."""
    return _quantities("beside", "Beside the statements", BESIDE, beside(outcomes))


def later(outcomes: pd.DataFrame) -> Table:
    """What was thought of after the outcomes."""
    return _quantities("after", "Thought of after the outcomes", AFTER, after(outcomes))


def each_line(outcomes: pd.DataFrame) -> Table:
    """Scores, diversity and drift of lines themselves."""
    found = levels(outcomes)
    columns = [Column("line", "line"), *(Column(name, name, "score") for name in found)]
    rows: list[Row] = [{"line": LEVELS[line], **row} for line, row in found.to_dict("index").items()]
    return Table("levels", "Levels", LEVEL, columns, rows)


def _quantities(name: str, title: str, note: str, found: pd.DataFrame) -> Table:
    columns = [
        Column("quantity", "quantity"),
        Column("response", "response"),
        Column("estimate", "estimate", "change"),
    ]
    rows: list[Row] = [row | {"estimate": _estimate(row)} for row in found.to_dict("records")]
    return Table(name, title, note, columns, rows)


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
        remarks.append(f"{name}: {', '.join(map(str, far)) or 'none'}")
    for line, title in SPENT.items():
        found[f"nfe {line}"] = outcomes[outcomes["line"] == line].groupby("cell")["nfe"].mean()
        columns.append(Column(f"nfe {line}", f"NFE of {title}", "count"))
    note = (
        f"Means of two seeds. Cells that deviate by more than {DEVIATES:g} standard errors from the model fitted "
        f"without them (by chance .3 of 36 would), {'; '.join(remarks)}. NFE are those of training; a soup costs what "
        "its teachers do."
    )
    return Table("cells", "Cells", note, columns, found.to_dict("records"))


def page(outcomes: pd.DataFrame) -> str:
    """The page in Markdown."""
    paid, found = price(outcomes), tests(outcomes)
    said = [
        HEAD,
        f"Price of distillation: {' and '.join(paid) if paid else 'neither less diversity nor more drift is shown'}.",
        f"Statement 1 as a whole: {_priced(first_statement(found), paid)}.",
    ]
    if lost := failures():
        which = ", ".join(f"{line} of cell {cell}, seed {seed}" for cell, seed, line in lost)
        said.append(f"Lines that failed and have the base's scores, diversity and drift (0) and no NFE: {which}.")
    for table in (tested(found, paid), further(outcomes), later(outcomes), each_line(outcomes), every_cell(outcomes)):
        said.append(f"## {table.title}\n\n{table.markdown()}\n{table.note}")
    return "\n\n".join(said) + "\n"


def _priced(verdict: str, paid: list[str]) -> str:
    return f"{verdict}, at the price above" if verdict == "holds" and paid else verdict


def _estimate(row: Row) -> Estimate:
    return Estimate(row["value"], row["low"], row["high"])


def main() -> None:
    """Write the page."""
    path = HERE / "results.md"
    write_atomic(path, page(complete()).encode())
    print(path)


if __name__ == "__main__":
    exit_on_error(main)
