"""Output paths that a user gives: checked before anything is computed, and created when they are written."""

import os
from pathlib import Path

from bench.errors import UsageError, one_line
from bench.system.files import is_special, naming, write_atomic
from bench.system.places import check_writable


def check_output(path: Path | None) -> None:
    """Check, before any work, that a user's output file can be written. Raises UsageError if it cannot."""
    if path is None:
        return
    try:
        is_folder, special = path.is_dir(), is_special(path)
    except OSError as error:
        raise UsageError(f"cannot write to {one_line(error)}") from error
    if is_folder:
        raise UsageError(f"cannot write to {path}: it is a folder; name a file")
    if not special:
        check_writable(_target(path).parent)


def check_folder(path: Path) -> None:
    """Check, before any work, that an output folder is empty or new and can be written. Raises UsageError if not."""
    try:
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"{path} is not empty; name a different folder, or remove it")
    except OSError as error:
        raise UsageError(f"cannot write to {one_line(error)}") from error
    check_writable(path)


def write_output(path: Path, data: bytes) -> None:
    """Write a user's output file, creating its folders. A pipe or device is written to directly.

    Raises OSError naming the file.
    """
    with naming(path):
        if is_special(path):
            path.write_bytes(data)
            return
        _target(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


def _target(path: Path) -> Path:
    """Return the path that is written for an output file: the target if it is a link, so that the link is kept."""
    return Path(os.path.realpath(path))
