"""Whether what a run left can be read again, looked at without torch and without reading all of it."""

import json
from pathlib import Path
from typing import Any

from bench.errors import DamagedError, one_line
from bench.store.names import APPENDED, REPLACED, STARTS
from bench.system.files import described, is_file, open_file, parse_json, read_record, read_rows

TAIL = 65_536


def check_settings(folder: Path) -> dict[str, Any]:
    """The settings in a run's spec.json. Raises DamagedError if there are none."""
    path = folder / "spec.json"
    if not is_file(path):
        raise DamagedError(f"{path} is gone")
    with described(path):
        spec = read_record(path)["spec"]
        if not isinstance(spec["budget"], dict):
            raise TypeError("its budget is no section")
        return spec


def check_whole(path: Path) -> None:
    """Raise DamagedError for a JSON record that was cut off or overwritten at an end; what is between is not read."""
    with open_file(path) as file:
        first = file.read(1)
        file.seek(max(0, path.stat().st_size - 16))
        last = file.read().rstrip()[-1:]
    if first != b"{" or last != b"}":
        raise DamagedError(f"{path} is not whole")


def check_resumable(folder: Path) -> None:
    """Raise DamagedError, OSError if unreadable, if the run of a folder could not go on from what is there."""
    for name in (*APPENDED, *REPLACED):
        is_file(folder / name)
    if is_file(starts := folder / STARTS):
        read_starts(starts)
    check_checkpoint(folder)


def check_checkpoint(folder: Path) -> None:
    """Raise DamagedError if a run's checkpoint, if it has one, or the logs that go with it are not whole."""
    if is_file(checkpoint := folder / "checkpoint.safetensors"):
        for path, length in log_lengths(folder, checkpoint_state(checkpoint)).items():
            _check_end(path, length)


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's provenance.jsonl; each says what the run is made from. Raises DamagedError."""
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("teachers"), dict):
            raise DamagedError(f"{path}, line {number} does not say of which teachers the run was made")
    return rows


def checkpoint_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors. Raises DamagedError if it is corrupt, OSError if unreadable."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DamagedError(f"corrupt checkpoint {path}: it is no file")
    try:
        with safe_open(path, "np") as file:
            state = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise DamagedError(f"corrupt checkpoint {path}: {one_line(error)}") from error
    if not isinstance(state, dict):
        raise DamagedError(f"corrupt checkpoint {path}: its state is no record")
    return state


def log_lengths(folder: Path, state: dict[str, Any]) -> dict[Path, int]:
    """Log -> how long it was when the checkpoint with this state was made. Raises DamagedError where one is shorter."""
    with described(folder / "checkpoint.safetensors"):
        lengths = {folder / log: length for log, length in state["logs"].items()}
        if not all(isinstance(length, int) and length >= 0 and "/" not in log for log, length in state["logs"].items()):
            raise ValueError("its logs' lengths are none")
    for path, length in lengths.items():
        size = path.stat().st_size if is_file(path) else 0
        if size < length:
            raise DamagedError(f"{path} has lost its end: {size} bytes where its run's checkpoint says {length}")
    return lengths


def _check_end(path: Path, length: int) -> None:
    """Look at the last line of a log's first bytes."""
    if not length:
        return
    with open_file(path) as file:
        file.seek(max(0, length - TAIL))
        *_, last, rest = [b"", *file.read(min(length, TAIL)).split(b"\n")]
    where = f"{path}, its last line at the checkpoint,"
    if rest:
        raise DamagedError(f"{where} does not end")
    if len(last) < TAIL - 1:  # a longer one is not looked at
        parse_json(last.decode(errors="replace"), where)
