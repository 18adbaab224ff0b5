"""Places that a user names for what a command makes: looked at before anything is computed, made when it is written."""

import os
from pathlib import Path

from bench.errors import UsageError, one_line
from bench.system.files import is_special, naming, write_atomic
from bench.system.places import check_writable


def check_output(path: Path | None) -> None:
    """Before work begins: raise UsageError if the file that a user named for its outcome could not be written."""
    if path is None:
        return
    try:
        is_folder, as_it_is = path.is_dir(), is_special(path)
    except OSError as error:
        raise UsageError(f"cannot write to {one_line(error)}") from error
    if is_folder:
        raise UsageError(f"cannot write to {path}: it is a folder; name a file")
    if not as_it_is:
        check_writable(_target(path).parent)


def check_folder(path: Path) -> None:
    """Before work begins: raise UsageError if a folder that will be filled could not be, or already holds something."""
    try:
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"{path} is not empty; name another folder, or remove it")
    except OSError as error:
        raise UsageError(f"cannot write to {one_line(error)}") from error
    check_writable(path)


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a user named, with the folders to it; a device or a pipe as it is. Raises OSError naming it."""
    with naming(path):
        if is_special(path):
            path.write_bytes(data)
            return
        _target(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)


def _target(path: Path) -> Path:
    """Where a file is written: a link stays one."""
    return Path(os.path.realpath(path))
