"""Errors that a user can act on, their exit codes, and how a program reports them."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from bench.terminal import legible


class BenchError(Exception):
    """An expected failure, reported in one line without a traceback. Exit code 1."""

    exit_code = 1


class UsageError(BenchError):
    """The request cannot be carried out as written. Exit code 2."""

    exit_code = 2


class DamagedError(UsageError):
    """A file has invalid contents. The message names the file, the line if any, and the problem. Exit code 2."""


class BusyError(UsageError):
    """Another process holds the requested run or file, which will be free or finished later. Exit code 2."""


class MissingError(BenchError):
    """A weight file, package or device is missing. The message says how to fix it. Exit code 3."""

    exit_code = 3


class PartialError(BenchError):
    """Some members of a set failed; the others are finished. Exit code 4."""

    exit_code = 4


class DetachedError(BenchError):
    """The user left the command while its jobs continue in Slurm. Exit code 75 (EX_TEMPFAIL: rerun later)."""

    exit_code = 75


class Stopped(Exception):
    """A listener stopped a run early on purpose. The run can be resumed; this is not a failure."""


class Interrupted(KeyboardInterrupt):
    """The user or the system asked to stop. The message says how to resume; this is not a failure. Exit code 130."""


CURES = {
    errno.ENOSPC: "free some space, then rerun the command to resume",
    errno.EDQUOT: "the quota is used up: free some space, then rerun the command to resume",
    errno.EFBIG: "allow larger files (ulimit -f), then rerun the command to resume",
    errno.EROFS: "choose a folder on a writable file system",
    errno.EACCES: "choose a folder that you have permission to use",
    errno.EPERM: "choose a folder that you have permission to use",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter path",
}
"""Advice for errors of the operating system, by error number."""


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, with control characters shown as escapes."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.errno:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return legible(" ".join(text.split())) or type(error).__name__


def explained(error: BaseException) -> str:
    """Return `one_line` of an error, with advice if it is an operating system error that has some."""
    cure = None
    if isinstance(error, OSError) and error.errno:
        cure = CURES.get(error.errno)
    return f"{one_line(error)}; {cure}" if cure else one_line(error)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to `name`, ignoring case; None if no name is similar."""
    folded: dict[str, str] = {}
    for word in known:
        folded.setdefault(word.casefold(), word)
    near = get_close_matches(name.casefold(), folded, 1, cutoff=0.5)
    return folded[near[0]] if near else None


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Make the UsageError for an unknown name. It suggests the nearest known name, ignoring case, and lists all."""
    known = sorted(known)
    near = nearest(name, known)
    hint = f"did you mean {near!r}? " if near else ""
    return UsageError(f"unknown {what} {name!r}; {hint}known: {', '.join(known) or 'none'}")


def exit_on_error(main: Callable[[], int | None]) -> None:
    """Run a program's main function and exit with the code that it returns.

    Errors that a user or the system causes become one line on stderr and an exit code: a BenchError's own code, 130 for
    an interrupt, 2 for invalid options, 1 for errors of the operating system or a database. A closed pipe (as with
    `| head`) is not reported and gives exit code 141, like other programs. Any other exception is a bug in this program
    and keeps its traceback.
    """
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        # Names and prompts may contain characters that the locale's encoding lacks.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int | None = main() or 0
        _flush()
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        _tell(error, code)
    except KeyboardInterrupt as stop:
        _say(one_line(stop) if str(stop) else "interrupted")
        code = 130
    sys.exit(code)


def _open_standard_streams() -> None:
    """Open the null device for each of stdin, stdout and stderr that is closed.

    Otherwise the next file to be opened would get that number and receive everything that is printed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The system assigns the lowest free number, which is this one.
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, True)


def _exit_code(error: Exception) -> int | None:
    if isinstance(error, BenchError):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return 141
    if isinstance(error, OSError) or type(error).__module__ == "sqlite3":
        return 1
    # Errors of the command line have this method. Their class is private to typer.
    return 2 if hasattr(error, "format_message") else None


def _tell(error: Exception, code: int) -> None:
    if isinstance(error, BrokenPipeError):
        _drop_output()
    elif hasattr(error, "format_message"):
        message = " ".join(error.format_message().split())
        # The message is empty if a command without arguments has printed its help.
        if message:
            _say(f"error: {legible(message)}")
    elif isinstance(error, OSError) and not error.filename and _output_fails():
        _say(f"error: standard output: {one_line(error)}")
    else:
        _say(f"error: {explained(error)}")


def _output_fails() -> bool:
    """Return whether writing to stdout fails. An empty line is printed because a flush of an empty buffer succeeds."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _say(text: str) -> None:
    """Print a line to stderr. If even that fails, only the exit code reports the error."""
    try:
        print(text, file=sys.stderr)
        _flush()
    except OSError:
        _drop_output()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()


def _drop_output() -> None:
    """Redirect stdout and stderr to the null device, so that Python's flush at exit does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
