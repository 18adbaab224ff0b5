"""Quick checks whether a run's files are intact, without torch and without reading the files completely."""

import json
from pathlib import Path
from typing import Any

from bench.errors import DamagedError, one_line
from bench.store.names import APPENDED, REPLACED, STARTS
from bench.system.files import described, is_file, open_file, parse_json, read_record, read_rows

TAIL = 65_536
"""Bytes before a checkpoint's position in a log that are checked."""


def check_settings(folder: Path) -> dict[str, Any]:
    """Return the settings in a run's spec.json. Raises DamagedError if the file is missing or invalid."""
    path = folder / "spec.json"
    if not is_file(path):
        raise DamagedError(f"{path} is missing")
    with described(path):
        spec = read_record(path)["spec"]
        if not isinstance(spec["budget"], dict):
            raise TypeError("its budget is not a JSON object")
        return spec


def check_whole(path: Path) -> None:
    """Raise DamagedError if a JSON record does not start and end with braces; the rest is not read."""
    with open_file(path) as file:
        first = file.read(1)
        file.seek(max(0, path.stat().st_size - 16))
        last = file.read().rstrip()[-1:]
    if first != b"{" or last != b"}":
        raise DamagedError(f"{path} is truncated or overwritten")


def check_resumable(folder: Path) -> None:
    """Raise DamagedError if a run could not resume from the files in its folder, OSError if one is unreadable."""
    for name in (*APPENDED, *REPLACED):
        is_file(folder / name)
    if is_file(starts := folder / STARTS):
        read_starts(starts)
    check_checkpoint(folder)


def check_checkpoint(folder: Path) -> None:
    """Raise DamagedError if a run has a checkpoint and it or one of its logs is damaged."""
    if is_file(checkpoint := folder / "checkpoint.safetensors"):
        for path, length in log_lengths(folder, checkpoint_state(checkpoint)).items():
            _check_end(path, length)


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's provenance.jsonl. Raises DamagedError for a row without "teachers"."""
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("teachers"), dict):
            raise DamagedError(f"{path}, line {number} does not record the run's teachers")
    return rows


def checkpoint_state(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state, from the file's metadata. Raises DamagedError if corrupt, OSError if unreadable."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DamagedError(f"corrupt checkpoint {path}: it is not a file")
    try:
        with safe_open(path, "np") as file:
            state = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise DamagedError(f"corrupt checkpoint {path}: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"corrupt checkpoint {path}: its state is not a JSON object")
    return state


def log_lengths(folder: Path, state: dict[str, Any]) -> dict[Path, int]:
    """Return log -> its length in bytes when the checkpoint with this state was made.

    Raises DamagedError for invalid lengths and for a log that is now shorter.
    """
    with described(folder / "checkpoint.safetensors"):
        lengths = {folder / log: length for log, length in state["logs"].items()}
        for log, length in state["logs"].items():
            # A name with a slash could lead to a file outside the run's folder, which resuming would truncate.
            if not isinstance(length, int) or length < 0 or "/" in log:
                raise ValueError(f"its length of the log {log!r} is invalid")
    for path, length in lengths.items():
        size = path.stat().st_size if is_file(path) else 0
        if size < length:
            raise DamagedError(f"{path} is truncated: it has {size} bytes, but had {length} at the run's checkpoint")
    return lengths


def _check_end(path: Path, length: int) -> None:
    """Raise DamagedError if the last line of a log's first `length` bytes is not complete JSON."""
    if not length:
        return
    with open_file(path) as file:
        file.seek(max(0, length - TAIL))
        end = file.read(min(length, TAIL))
    *_, last, rest = [b"", *end.split(b"\n")]
    where = f"{path}, its last line before the checkpoint,"
    if rest:
        raise DamagedError(f"{where} is incomplete")
    # The start of a longer line was not read.
    if len(last) < TAIL - 1:
        parse_json(last.decode(errors="replace"), where)
