"""A study's journal file: Optuna's, made safe against incomplete lines.

A worker that is killed while it writes, or a full disk, leaves an incomplete line. Optuna ignores it as long as it is
the last line, but appends the next record to it, after which the journal cannot be read any more. Here an incomplete
line is removed before anything is appended. Nothing is lost: the trial is still claimed, and whoever carries it on
writes the record again.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from bench.errors import DamagedError, UsageError
from bench.system.files import parse_json


class StorageError(UsageError):
    """A study's storage cannot be used. Not caused by a trial, which therefore does not count as failed."""


class DamagedJournal(StorageError, DamagedError):
    """A study's journal has contents that Optuna did not write."""


class Journal(JournalFileBackend):
    """The journal file in the form Optuna's storage needs. Raises DamagedJournal if it is not a valid journal."""

    def __init__(self, path: Path):
        self._mending = MendingLock(path)
        super().__init__(str(path), lock_obj=self._mending)
        with self._mending.held():
            check(path)


class ReadJournal(JournalFileBackend):
    """An existing journal file, only to be read. Raises DamagedJournal if it is not a valid journal.

    An incomplete last line is left out, as Optuna does, and not removed.
    """

    def __init__(self, path: Path):
        super().__init__(str(path))
        check(path, whole=False)


class MendingLock(JournalFileOpenLock):
    """Optuna's lock for appending, which also repairs the file. Reading does not take the lock.

    It is a plain file rather than Optuna's default, a symbolic link: if a killed worker leaves a link and the results
    folder is moved, the link dangles and Optuna waits for it forever.
    """

    def __init__(self, path: Path):
        super().__init__(str(path))
        self.path, self.known = path, 0

    def acquire(self) -> bool:
        """Wait for the lock and remove an incomplete line.

        Raises DamagedJournal if the file shrank by complete lines since the last time, OSError if it is gone.
        """
        held = super().acquire()
        try:
            mend(self.path)
            size = self.path.stat().st_size
            if size < self.known:
                raise DamagedJournal(f"{self.path} was truncated while the sweep was running: start the sweep again")
            self.known = size
        except BaseException:  # whatever it is, a lock left behind would block the other workers
            self.release()
            raise
        return held

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock in a with statement; raises as `acquire` does."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


def mend(path: Path) -> None:
    """Remove an incomplete last line; complete one that lacks only its line feed. The caller holds the lock.

    Raises DamagedJournal if the last line is not the beginning of a record, so that a foreign file is not changed.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        start = file.read().rfind(b"\n") + 1
        file.seek(start)
        end = file.read()
        _refuse_foreign(end, path)
        if _is_complete(end):
            file.write(b"\n")
        else:
            file.truncate(start)
        file.flush()
        os.fsync(file.fileno())


def _refuse_foreign(end: bytes, path: Path) -> None:
    """Raise DamagedJournal if an incomplete last line is not the beginning of a record."""
    # A crash may also leave zero bytes, where the file system had reserved space that was never written.
    if end.strip(b"\0") and not end.startswith(b"{"):
        raise DamagedJournal(f"{path} does not end with a record of a study's journal: {cure(path)}")


def check(path: Path, whole: bool = True) -> None:
    """Raise DamagedJournal, naming the first line that is not a record of a journal.

    The caller holds the lock, unless `whole` is False: then the last line may be incomplete.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not whole and not line.endswith(b"\n"):
                _refuse_foreign(line, path)
                return
            where = f"{path}, line {number}"
            try:
                record = parse_json(line.decode(), where)
            except (UnicodeDecodeError, DamagedError) as error:
                raise DamagedJournal(f"{where} is damaged: {cure(path)}") from error
            if not isinstance(record, dict) or not {"op_code", "worker_id"} <= record.keys():
                raise DamagedJournal(f"{where} is not a record of a study's journal: {cure(path)}")


def _is_complete(line: bytes) -> bool:
    """Whether a line parses as a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def cure(path: Path) -> str:
    """What to do about a damaged journal, for error messages."""
    return f"move it away and start the sweep again; finished runs in {path.parent / 'runs'} are not repeated"
