"""Checks that folders and files can be written, made before any work, and file locks."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bench.errors import BenchError, BusyError, UsageError, one_line
from bench.system.files import is_file, naming


def check_writable(folder: Path) -> None:
    """Check, before any work, that files can be written to a folder, which may not exist yet.

    Raises UsageError if they cannot. A temporary file is written, because permissions are not reliable on every file
    system. Leaves nothing behind.
    """
    place = folder
    try:
        while not place.exists() and not place.is_symlink():
            place = place.parent
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        with naming(place), tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {one_line(error)}; choose another folder") from error


def check_appendable(path: Path) -> None:
    """Check, before any work, that an existing file can be appended to.

    Raises UsageError if it cannot, and DamagedError if the path is not a file.
    """
    try:
        if is_file(path):
            path.open("ab").close()
    except OSError as error:
        raise UsageError(f"cannot write to {one_line(error)}; choose another folder") from error


def missing_folders(folder: Path) -> list[Path]:
    """Return the folders that creating this one would create, itself first and its ancestors after it."""
    found = []
    while not folder.exists() and folder != folder.parent:
        found.append(folder)
        folder = folder.parent
    return found


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, given from the innermost outwards, up to the first that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[IO[str]]:
    """Hold a file's lock in the block; the file and its folder are created if they do not exist.

    If the lock is held elsewhere, waits for it, or without `wait` raises BusyError with the process named in the file.
    Raises DamagedError if the path is not a file, and BenchError on a file system without locks.
    """
    while True:
        made = missing_folders(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
        is_file(path)
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().split()[:2] or ["?"]
                raise BusyError(f"{path.parent} is in use by process {' on '.join(owner)}") from error
            except OSError as error:
                if made:
                    path.unlink()
                    remove_empty(made)
                cause = f"the file system of {path.parent} does not support locks (flock): {error.strerror}"
                raise BenchError(f"{cause}; choose another folder") from error
            # The previous holder has removed the file, so a lock on it excludes nobody.
            if not _is_still(file, path):
                continue
            yield file
            return


def _is_still(file: IO, path: Path) -> bool:
    """Return whether an open file is the one at its path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
