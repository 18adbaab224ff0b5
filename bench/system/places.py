"""Places to write to, looked at before work begins, and the locks on them."""

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
    """Before work begins: raise UsageError if nothing can be written into a folder, made if need be.

    Leaves nothing behind. A file is really written: what permissions say does not hold on every file system.
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
        raise UsageError(f"cannot write to {folder}: {one_line(error)}; choose another place") from error


def check_appendable(path: Path) -> None:
    """Before work begins: raise UsageError if a file that is there cannot be written on, DamagedError if it is none."""
    try:
        if is_file(path):
            path.open("ab").close()
    except OSError as error:
        raise UsageError(f"cannot write to {one_line(error)}; choose another place") from error


def missing_folders(folder: Path) -> list[Path]:
    """The folders that making this one would make, itself first."""
    found = []
    while not folder.exists() and folder != folder.parent:
        found.append(folder)
        folder = folder.parent
    return found


def remove_empty(folders: list[Path]) -> None:
    """Take folders away again, the innermost first, as far as nothing is in them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[IO[str]]:
    """Hold a file's lock for this process; the file, and its folder, are made if need be.

    Raises BusyError, naming the process that has it by the file's own word, if that is not waited for; DamagedError for
    what is no file; BenchError on a file system without locks.
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
                raise BusyError(f"{path.parent} is being run by process {' on '.join(owner)}") from error
            except OSError as error:
                if made:
                    path.unlink()
                    remove_empty(made)
                cause = f"the file system of {path.parent} has no locks (flock): {error.strerror}"
                raise BenchError(f"{cause}; choose another place") from error
            if not _is_still(file, path):  # who had it before has taken it away
                continue
            yield file
            return


def _is_still(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
