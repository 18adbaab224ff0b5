"""What the project's own records hold, checked before anything is computed from them."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bench.system.files import described


def check_summary(path: Path, summary: dict[str, Any], tasks: Collection[str]) -> None:
    """Raise DamagedError if a summary.json is not that of a run of these tasks in its own folder."""
    with described(path):
        if summary["folder"] != path.parent.name:
            raise ValueError(f"it is of the run {summary['folder']!r}")
        for key, kind in (("method", str), ("split", str), ("seed", int), ("updates", int), ("teachers", dict)):
            _kind(summary[key], kind, key)
        _check_meter(summary["cost"])
        student = summary["models"]["student"]
        if set(student) != set(tasks):
            raise ValueError("it is of other tasks than its run's")
        for rows in summary["models"].values():
            for task in tasks:
                _check_row(rows[task], task, student[task]["strata"])


def check_points(path: Path, rows: list[dict[str, Any]]) -> None:
    """Raise DamagedError if the lines of an evaluations.jsonl are no evaluations."""
    for number, row in enumerate(rows, 1):
        with described(path):
            for key, kind in (("step", int), ("share", (int, float))):
                _kind(row[key], kind, f"{key} in line {number}")
            _check_row(row, row["task"], row["strata"])


def check_evaluation(path: Path, record: dict[str, Any], task: str, prompts: int) -> None:
    """Raise DamagedError if a stored evaluation is not one of a task on so many prompts."""
    with described(path):
        _check_row(record, task, record["strata"])
        if len(record["strata"]) != prompts:
            raise ValueError(f"it is of {len(record['strata'])} prompts, not of {prompts}")


def check_state(path: Path, state: dict[str, Any]) -> None:
    """Raise DamagedError if what a checkpoint says beside its tensors is not what training goes on from."""
    with described(path):
        for key, kind in (("step", int), ("last_share", (int, float)), ("evaluated", list), ("scaler", dict)):
            _kind(state[key], kind, key)
        _numbers(state["evaluated"], "evaluated")
        _numbers([*state["scaler"].values()], "scaler")
        _check_meter(state["meter"])


def _check_row(row: dict[str, Any], task: str, strata: list[str]) -> None:
    """Every metric has a number for every prompt, the headline is among them."""
    if row["task"] != task or row["strata"] != strata:
        raise ValueError(f"it has rows of other prompts where those of {task} should be")
    if not strata or set(map(type, strata)) != {str}:
        raise TypeError(f"{task} has no strata")
    if row["headline"] not in row["rows"]:
        raise ValueError(f"{task} has no values of its headline {row['headline']}")
    for name, values in row["rows"].items():
        _numbers(values, f"{task}'s {name}", unknown=name != row["headline"])
        if len(values) != len(strata):
            raise ValueError(f"{task} has {len(values)} values of {name} for {len(strata)} prompts")
    if "prompts" in row:
        _numbers(row["prompts"], f"{task}'s prompts")
        if len(row["prompts"]) != len(strata):
            raise ValueError(f"{task} has {len(row['prompts'])} numbers of prompts for {len(strata)} prompts")


def _check_meter(meter: dict[str, Any]) -> None:
    for part in ("evaluations", "seconds"):
        _kind(meter[part], dict, part)
        _numbers([*meter[part].values()], part)


def _numbers(values: Any, what: str, unknown: bool = False) -> None:
    """`unknown`: some may be None, or without limit as a scorer gave them. JSON as Python reads it holds NaN as well,
    which is never written."""
    _kind(values, list, what)
    known = [value for value in values if not (unknown and value is None)]
    if not set(map(type, known)) <= {int, float}:
        raise TypeError(f"{what} holds what is no number")
    if any(map(math.isnan, known)) or not (unknown or all(map(math.isfinite, known))):
        raise ValueError(f"{what} holds what is not finite")


def _kind(value: Any, kind: type | tuple[type, ...], what: str) -> None:
    endless = isinstance(value, float) and not math.isfinite(value)
    if not isinstance(value, kind) or isinstance(value, bool) or endless:
        raise TypeError(f"{what} is {value!r:.40}")
