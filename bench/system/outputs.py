"""Places that a user names for what a command makes: looked at before anything is computed, made when it is written."""

from pathlib import Path

from bench.errors import UsageError, one_line
from bench.system.files import naming, write_atomic
from bench.system.places import check_writable


def check_output(path: Path | None) -> None:
    """Before work begins: raise UsageError if the file that a user named for its outcome could not be written."""
    if path is None:
        return
    try:
        is_folder, is_special = path.is_dir(), path.exists() and not path.is_file()
    except OSError as error:
        raise UsageError(f"cannot write to {one_line(error)}") from error
    if is_folder:
        raise UsageError(f"cannot write to {path}: it is a folder; name a file")
    if not is_special:  # a device or a pipe is written to as it is
        check_writable(path.parent)


def check_folder(path: Path) -> None:
    """Before work begins: raise UsageError if a folder that will be filled could not be, or already holds something."""
    try:
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(f"{path} is not empty; name another folder, or remove it")
    except OSError as error:
        raise UsageError(f"cannot write to {one_line(error)}") from error
    check_writable(path)


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a user named, with the folders to it. Raises OSError naming it."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
