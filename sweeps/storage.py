"""Where a study is kept: a journal file in its folder, or a database. Whatever is wrong with either is one line that
names it and says what to do, and holds no password."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from bench.errors import BenchError, MissingError, UsageError, one_line
from bench.masking import masked, readable, secrets_of, without_secrets
from sweeps.journal import DamagedJournal, Journal, StorageError, cure

REFERENCE, VARIABLE = "env:", "BENCH_STORAGE"
"""--storage env:NAME is the URL in the environment variable NAME; jobs are given theirs in this one."""


@dataclass(frozen=True)
class Place:
    """Where a study is kept."""

    folder: Path
    storage: str | None = field(default=None, repr=False)
    """URL of an Optuna RDB storage, which may hold a password; None: a journal file in the folder."""

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def journal(self) -> Path:
        return self.folder / "journal.log"

    @property
    def shown(self) -> str:
        """What the storage is called in messages."""
        return f"--storage {masked(self.storage)}" if self.storage else str(self.journal)


def make_folder(folder: Path) -> Path:
    """Make a folder of the study. Raises UsageError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror or error}; use another --results") from error
    return folder


def storage_url(given: str | None) -> str | None:
    """The URL that --storage means. Raises MissingError if the environment variable that it names is not set,
    StorageError for no URL at all: the study would go to the journal instead."""
    if given is not None and not given.strip():
        raise StorageError("--storage is empty: give a URL or env:NAME, or leave it out for a journal file")
    if given is None or not given.startswith(REFERENCE):
        return given
    name = given.removeprefix(REFERENCE)
    if not (url := os.environ.get(name)):
        raise MissingError(
            f"--storage {given}: the environment variable {name or 'of no name'} is not set; export it with the "
            "storage's URL (and let Slurm pass it on where a profile's sbatch sets export)"
        )
    return url


def for_jobs(given: str | None) -> str | None:
    """--storage as a job's command may hold it: a URL with a secret goes by the environment, which jobs inherit."""
    if given is None or given.startswith(REFERENCE) or masked(given) == given:
        return given
    os.environ[VARIABLE] = given
    return f"{REFERENCE}{VARIABLE}"


def check_storage(place: Place) -> None:
    """Refuse a database that cannot be used before anything is written to the disk. Raises StorageError, MissingError
    for a driver that is not installed."""
    if not place.storage:
        return
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url

    try:
        url = make_url(place.storage)
        clear = readable(place.storage) and str(url.password or "") in ("", *secrets_of(place.storage))
    except Exception:  # the parser's own words would repeat parts of the password
        clear = False
    if not clear:
        raise StorageError(
            f"{place.shown} is no database URL: it is written DIALECT://USER:PASSWORD@HOST/DATABASE or "
            "sqlite:///FILE, with %40, %3A and %2F for @, : and / in a password"
        )
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise StorageError(f"{place.shown} is a database in memory, which no other process sees and nothing keeps")
    with storage_errors(place), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a query that a driver passes over: they show source lines, and no cure
        engine = create_engine(url)
        begun = "version_info" in inspect(engine).get_table_names()
        engine.dispose()
        if begun:  # Optuna's tables are there: are they this version's?
            _database(place.storage)


def open_storage(place: Place) -> BaseStorage:
    """Optuna's storage, made if need be. Raises StorageError."""
    with storage_errors(place), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `check_storage`
        if not place.storage:
            return JournalStorage(Journal(place.journal))
        return optuna.storages.get_storage(_database(place.storage))


def _database(url: str) -> RDBStorage:
    return RDBStorage(url.replace("{", "{{").replace("}", "}}"))  # Optuna takes braces for places to fill in


@contextmanager
def storage_errors(place: Place) -> Iterator[None]:
    """Whatever the storage raises inside becomes a StorageError of one line, MissingError for a missing driver.

    Nothing is chained to it: jobs write whole tracebacks to files, and the cause may repeat the password.
    """
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        told = _told(error)
        if not place.storage:
            raise StorageError(
                f"{place.journal} cannot be used ({told}): mend what is wrong and start the sweep again, or move the "
                "file away; runs that are done are not repeated"
            ) from None
        told = without_secrets(told, place.storage)
        if isinstance(error, ImportError):
            raise MissingError(f"{place.shown}: install the database's driver ({told})") from None
        raise StorageError(f"{place.shown}: {told}") from None


def damaged(place: Place, what: str) -> StorageError:
    """The error for a storage that can be read and holds what no study does."""
    if place.storage:
        return StorageError(f"{place.shown}, {what}: mend it, or give the study another name")
    return DamagedJournal(f"{place.journal}, {what}: {cure(place.journal)}")


def _told(error: BaseException) -> str:
    """The driver's words where sqlalchemy and Optuna wrap them, on one line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(origin := getattr(cause, "orig", None), BaseException):
            return one_line(origin)
        cause = cause.__cause__
    kind = "" if isinstance(error, OSError | RuntimeError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error)}"
