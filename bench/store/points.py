"""What a run had spent at its recorded points."""

import json
from pathlib import Path
from typing import Any

from bench.store.names import METRICS
from bench.system.files import described, is_file, read_text

STEP = '{"step": '
"""How a row of the log begins."""


def with_nfe(points: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's evaluations, each with "nfe", its training NFE after the update of the same step.

    They stay as they are if the log, or one of their updates in it, is missing. Raises DamagedError for a log whose
    rows cannot be read.
    """
    path = folder / METRICS
    steps = {row["step"] for row in points}
    if not steps or not is_file(path):
        return points
    spent = {0: {"nfe": 0.0}}  # before training; a method without updates writes a row with this step
    with described(path):
        # A log has many rows, of which a few are read.
        for line in read_text(path).split("\n")[:-1]:
            head, _, _ = line.partition(",")
            if head.startswith(STEP) and int(head.removeprefix(STEP)) in steps:
                row = json.loads(line)
                spent[row["step"]] = {"nfe": float(row["evaluations"].get("training", 0))}
    return [row | spent[row["step"]] for row in points] if steps <= spent.keys() else points
