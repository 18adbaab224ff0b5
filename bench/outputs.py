"""Places that a user names for what a command makes: looked at before anything is computed."""

import secrets
from pathlib import Path

from bench.errors import UsageError, one_line
from bench.files import TEMPORARY


def ready_file(path: Path) -> None:
    """Make the folder of a file that will be written. Raises UsageError if the file could not be."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    probe = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")  # as write_atomic will call it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


def ready_folder(path: Path) -> None:
    """Make a folder that will be filled. Raises UsageError if it cannot be made or already holds something."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(f"{path} is not empty; name another folder, or remove it")
    except OSError as error:
        raise UsageError(f"cannot write into {path}: {error.strerror or one_line(error)}") from error
    ready_file(path / "probe")
