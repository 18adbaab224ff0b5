"""Where a study is stored: a journal file in its folder, or a database.

Errors are one line that names the storage and the cure, and never contain a password.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from bench.errors import BenchError, MissingError, UsageError, one_line
from bench.masking import masked, readable, secrets_of, without_secrets
from sweeps.journal import DamagedJournal, Journal, ReadJournal, StorageError, cure

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

REFERENCE, VARIABLE = "env:", "BENCH_STORAGE"
"""--storage env:NAME reads the URL from the environment variable NAME; jobs receive theirs in BENCH_STORAGE."""


@dataclass(frozen=True)
class Place:
    """A study's folder and storage."""

    folder: Path
    storage: str | None = field(default=None, repr=False)
    """URL of an Optuna RDB storage, which may contain a password; None for a journal file in the folder."""

    @property
    def runs(self) -> Path:
        """The results folder of the trials' runs."""
        return self.folder / "runs"

    @property
    def journal(self) -> Path:
        """The journal file, used if there is no database."""
        return self.folder / "journal.log"

    @property
    def shown(self) -> str:
        """The storage's name in messages, without its password."""
        return f"--storage {masked(self.storage)}" if self.storage else str(self.journal)


def make_folder(folder: Path) -> Path:
    """Create a folder of the study and return it. Raises UsageError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        cause = error.strerror or error
        raise UsageError(f"cannot create {folder}: {cause}; use another --results folder") from error
    return folder


def storage_url(given: str | None) -> str | None:
    """The URL that --storage means, None for the journal.

    Raises MissingError if the environment variable that it names is not set, and StorageError if it is empty: using the
    journal instead would silently start another study.
    """
    if given is not None and not given.strip():
        raise StorageError("--storage is empty: give a URL or env:NAME, or leave it out for a journal file")
    if given is None or not given.startswith(REFERENCE):
        return given
    name = given.removeprefix(REFERENCE)
    url = os.environ.get(name)
    if not url:
        raise MissingError(
            f"--storage {given}: the environment variable {name or '(no name given)'} is not set; export it with the "
            "storage's URL (if the profile's sbatch settings include export, add it there)"
        )
    return url


def for_jobs(given: str | None) -> str | None:
    """--storage in the form that is written into a job; a URL with a secret is passed in the environment instead."""
    if given is None or given.startswith(REFERENCE) or masked(given) == given:
        return given
    os.environ[VARIABLE] = given
    return f"{REFERENCE}{VARIABLE}"


def check_storage(place: Place) -> bool:
    """Check, before anything is written to disk, that a database can be used; returns whether the storage exists yet.

    Raises StorageError if not, MissingError if its driver is not installed. A new file of SQLite is not created.
    """
    if not place.storage:
        return place.journal.exists()
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.engine import make_url

    try:
        url = make_url(place.storage)
        # The password must be one that messages mask: otherwise an error could print it.
        maskable = str(url.password or "") in ("", *secrets_of(place.storage))
        clear = readable(place.storage) and maskable
    except Exception:  # not chained: the parser's message may repeat parts of the password
        clear = False
    if not clear:
        raise StorageError(
            f"{place.shown} is not a database URL: use DIALECT://USER:PASSWORD@HOST/DATABASE or "
            "sqlite:///FILE, with %40, %3A and %2F for @, : and / in a password"
        )
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise StorageError(
            f"{place.shown} is an in-memory database, which other processes cannot see and which is lost at the end: "
            "use sqlite:///FILE"
        )
    if _can_be_created(url):
        return False
    with storage_errors(place), warnings.catch_warnings():
        # Drivers warn about URL options that they ignore; such a warning shows source lines instead of a cure.
        warnings.simplefilter("ignore")
        engine = create_engine(url)
        exists = "version_info" in inspect(engine).get_table_names()
        engine.dispose()
        if exists:  # opening it checks that the tables have the installed Optuna's version
            _database(place.storage)
    return exists


def _can_be_created(url: "URL") -> bool:
    """Whether a database is a file of SQLite that does not exist and can be made, which connecting to it would do."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return False
    path = Path(url.database.removeprefix("file:").partition("?")[0])
    return not path.exists() and path.parent.is_dir() and os.access(path.parent, os.W_OK)


def open_storage(place: Place) -> BaseStorage:
    """Optuna's storage, created if it does not exist. Raises StorageError if it cannot be used."""
    with storage_errors(place), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `check_storage`
        if not place.storage:
            return JournalStorage(Journal(place.journal))
        return optuna.storages.get_storage(_database(place.storage))


def read_storage(place: Place) -> BaseStorage | None:
    """Optuna's storage, only to be read, or None if it does not exist. Raises StorageError if it cannot be used."""
    if not check_storage(place):
        return None
    if place.storage:
        return open_storage(place)
    with storage_errors(place):
        return JournalStorage(ReadJournal(place.journal))


def _database(url: str) -> RDBStorage:
    """Optuna's storage in a database."""
    escaped = url.replace("{", "{{").replace("}", "}}")  # Optuna passes the URL through str.format
    return RDBStorage(escaped)


@contextmanager
def storage_errors(place: Place) -> Iterator[None]:
    """Turn whatever the storage raises inside into a StorageError of one line, or MissingError for a missing driver.

    The cause is not chained: jobs write tracebacks to files, and its message may repeat the password.
    """
    try:
        yield
    except BenchError:
        raise
    except Exception as error:
        message = _message(error)
        if not place.storage:
            raise StorageError(
                f"{place.journal} cannot be used ({message}): fix the cause and start the sweep again, or move the "
                "file away; finished runs are not repeated"
            ) from None
        message = without_secrets(message, place.storage)
        if isinstance(error, ImportError):
            raise MissingError(f"{place.shown}: install the database's driver ({message})") from None
        raise StorageError(f"{place.shown}: {message}") from None


def damaged(place: Place, what: str) -> StorageError:
    """The error for a storage that can be read but has invalid contents, described by `what`."""
    if place.storage:
        return StorageError(f"{place.shown}, {what}: repair it, or give the study a different name")
    return DamagedJournal(f"{place.journal}, {what}: {cure(place.journal)}")


def _message(error: BaseException) -> str:
    """An error's message on one line: the database driver's own if SQLAlchemy or Optuna wrapped it."""
    cause: BaseException | None = error
    while cause is not None:
        origin = getattr(cause, "orig", None)
        if isinstance(origin, BaseException):
            return one_line(origin)
        cause = cause.__cause__
    kind = "" if isinstance(error, OSError | RuntimeError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error)}"
