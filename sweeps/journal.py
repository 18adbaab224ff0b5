"""A study's journal file: Optuna's, but a line that was cut off is never appended to.

A worker that is killed, or a disk that is full, in the middle of a write leaves the beginning of a line. Optuna passes
over it while it is the last one; the next line is then glued to it, and the journal can never be read again. Here the
cut line is dropped first: what it told is told again, because its trial is still in its worker's, or a dead worker's,
hands.
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
    """A study's storage cannot be used, now or any more; it is no fault of a trial."""


class DamagedJournal(StorageError, DamagedError):
    """A study's journal does not hold what it should."""


class Journal(JournalFileBackend):
    """The file as Optuna's storage uses it. Raises DamagedJournal for a file that is no journal, or is damaged."""

    def __init__(self, path: Path):
        self._mending = MendingLock(path)
        super().__init__(str(path), lock_obj=self._mending)
        with self._mending.held():
            check(path)


class MendingLock(JournalFileOpenLock):
    """Optuna's lock, which is held for every append and by nobody while the file is read; who has it mends the file.

    A plain file and not Optuna's usual symbolic link: a link left by a killed worker leads nowhere once the results
    folder has been moved, and Optuna would wait for it for ever.
    """

    def __init__(self, path: Path):
        super().__init__(str(path))
        self.path, self.known = path, 0

    def acquire(self) -> bool:
        """Wait for the lock and drop a cut line. Raises DamagedJournal if whole lines are gone since the last time,
        OSError if the file is."""
        held = super().acquire()
        try:
            mend(self.path)
            size = self.path.stat().st_size
            if size < self.known:
                raise DamagedJournal(f"{self.path} was cut while the sweep went on: start it again")
            self.known = size
        except BaseException:
            self.release()
            raise
        return held

    @contextmanager
    def held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def mend(path: Path) -> None:
    """Drop a last line that was not written whole; end one that only misses its line feed. Call it with the lock.

    Raises DamagedJournal for an end that is no beginning of a journal's line.
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
        if end.strip(b"\0") and not end.startswith(b"{"):
            raise DamagedJournal(f"{path} does not end in a line of a study's journal: {cure(path)}")
        if _whole(end):
            file.write(b"\n")
        else:
            file.truncate(start)
        file.flush()
        os.fsync(file.fileno())


def check(path: Path) -> None:
    """Raises DamagedJournal naming the first line that is no record of a study's journal. Call it with the lock."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                record = parse_json(line.decode(), where)
            except (UnicodeDecodeError, DamagedError) as error:
                raise DamagedJournal(f"{where} is damaged: {cure(path)}") from error
            if not isinstance(record, dict) or not {"op_code", "worker_id"} <= record.keys():
                raise DamagedJournal(f"{where} is no record of a study's journal: {cure(path)}")


def _whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def cure(path: Path) -> str:
    """What to do about a journal that is damaged."""
    return f"move it away and start the sweep again; runs that are done are in {path.parent / 'runs'} and not repeated"
