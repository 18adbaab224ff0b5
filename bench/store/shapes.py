"""Checks of the structure of stored records, made before anything is computed from them."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bench.system.files import described


def check_summary(path: Path, summary: dict[str, Any], tasks: Collection[str]) -> None:
    """Raise DamagedError if a summary.json is invalid, or not that of a run of these tasks in this folder."""
    kinds = {"method": str, "split": str, "seed": int, "updates": int, "teachers": dict}
    with described(path):
        if summary["folder"] != path.parent.name:
            raise ValueError(f"it belongs to the run {summary['folder']!r}")
        for key, kind in kinds.items():
            _kind(summary[key], kind, key)
        _check_meter(summary["cost"])
        _check_peak(summary["cost"].get("peak_bytes", {}))
        student = summary["models"]["student"]
        if set(student) != set(tasks):
            raise ValueError("its tasks are not those of the run")
        points = summary.get("points", {})
        along = summary.get("along", {})
        for rows in (*summary["models"].values(), *points.values(), *along.values()):
            for task in tasks:
                _check_row(rows[task], task, student[task]["strata"])


def check_points(path: Path, rows: list[dict[str, Any]]) -> None:
    """Raise DamagedError if a line of an evaluations.jsonl is not a valid evaluation."""
    for number, row in enumerate(rows, 1):
        with described(path):
            _kind(row["step"], int, f"step in line {number}")
            _kind(row["share"], (int, float), f"share in line {number}")
            _check_row(row, row["task"], row["strata"])


def check_evaluation(path: Path, record: dict[str, Any], task: str, images: int) -> None:
    """Raise DamagedError if a stored evaluation is not one of this task with this number of images."""
    with described(path):
        _check_row(record, task, record["strata"])
        if len(record["strata"]) != images:
            raise ValueError(f"it has {len(record['strata'])} images, not {images}")


def check_state(path: Path, state: dict[str, Any]) -> None:
    """Raise DamagedError if a checkpoint's state lacks a value that resuming needs, or has an invalid one."""
    kinds: dict[str, type | tuple[type, ...]]
    kinds = {"step": int, "last_share": (int, float), "evaluated": list, "scaler": dict}
    with described(path):
        for key, kind in kinds.items():
            _kind(state[key], kind, key)
        _numbers(state["evaluated"], "evaluated")
        _numbers([*state["scaler"].values()], "scaler")
        _check_meter(state["meter"])
        _check_peak(state.get("peak_bytes", {}))


def _check_row(row: dict[str, Any], task: str, strata: list[str]) -> None:
    """Raise an error unless every metric has a value for every prompt, and the headline metric is among them."""
    if row["task"] != task or row["strata"] != strata:
        raise ValueError(f"its rows for {task} are of a different task or different prompts")
    if not strata or set(map(type, strata)) != {str}:
        raise TypeError(f"{task} has no strata")
    if row["headline"] not in row["rows"]:
        raise ValueError(f"{task} has no values of its headline metric {row['headline']}")
    for name, values in row["rows"].items():
        _numbers(values, f"{task}'s {name}", unknown=name != row["headline"])
        if len(values) != len(strata):
            raise ValueError(f"{task} has {len(values)} values of {name} for {len(strata)} images")
    if "prompts" in row:
        _numbers(row["prompts"], f"{task}'s prompts")
        if len(row["prompts"]) != len(strata):
            raise ValueError(f"{task} has {len(row['prompts'])} prompt indices for {len(strata)} images")


def _check_meter(meter: dict[str, Any]) -> None:
    # Records and checkpoints of before have no backward passes.
    for part in ("evaluations", "seconds", *({"backward"} & meter.keys())):
        _kind(meter[part], dict, part)
        _numbers([*meter[part].values()], part)


def _check_peak(peak: Any) -> None:
    _kind(peak, dict, "peak_bytes")
    _numbers([*peak.values()], "peak_bytes")
    if peak and "host" not in peak:
        raise ValueError("peak_bytes has no value of the host")


def _numbers(values: Any, what: str, unknown: bool = False) -> None:
    """Raise an error unless `values` is a list of finite numbers; with `unknown`, None and infinities are allowed.

    A scorer may give infinities. NaN is always invalid: it is never written, although Python's JSON reader accepts it.
    """
    _kind(values, list, what)
    known = [value for value in values if not (unknown and value is None)]
    # The types are compared exactly, because bool is a subclass of int.
    if not set(map(type, known)) <= {int, float}:
        raise TypeError(f"{what} contains a value that is not a number")
    invalid = math.isnan if unknown else _not_finite
    if any(map(invalid, known)):
        raise ValueError(f"{what} contains a value that is not finite")


def _not_finite(value: float) -> bool:
    return not math.isfinite(value)


def _kind(value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raise TypeError unless a value is of a type. A bool does not count as a number, and numbers must be finite."""
    infinite = isinstance(value, float) and _not_finite(value)
    if infinite or isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"the value of {what} is invalid: {value!r:.40}")
