"""Errors a user can act on, each with its exit code."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

from bench.terminal import legible


class BenchError(Exception):
    """Something failed for a reason worth one line. Exit code 1."""

    exit_code = 1


class UsageError(BenchError):
    """The request cannot be carried out as written. Exit code 2."""

    exit_code = 2


class DamagedError(UsageError):
    """A file does not hold what it should; the message names the file, the line if there is one, and what is wrong."""


class BusyError(UsageError):
    """Another process has what is asked for in hand; it will be free, or done, later."""


class MissingError(BenchError):
    """A weight file, package or device is missing; the message names the cure. Exit code 3."""

    exit_code = 3


class PartialError(BenchError):
    """Some members of a set failed, the others are done. Exit code 4."""

    exit_code = 4


class DetachedError(BenchError):
    """The user left while jobs go on elsewhere. Exit code 75, as of what is unfinished and can be resumed."""

    exit_code = 75


class Stopped(Exception):
    """A listener ends a run early on purpose; it can be resumed. Not a failure."""


class Interrupted(KeyboardInterrupt):
    """The user, or the system, asked to stop; the message says how to go on. Not a failure. Exit code 130."""


CURES = {
    errno.ENOSPC: "free some space, and the same command goes on",
    errno.EDQUOT: "the quota is used up: free some space, and the same command goes on",
    errno.EFBIG: "allow larger files (ulimit -f), and the same command goes on",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that you may use",
    errno.EPERM: "choose a place that you may use",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter path",
}
"""What to do where the operating system refuses."""


def one_line(error: BaseException) -> str:
    """An exception's message on one line, with nothing in it that a terminal would obey."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.errno:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return legible(" ".join(text.split())) or type(error).__name__


def explained(error: BaseException) -> str:
    """`one_line`, and what to do where the operating system has refused something."""
    cure = CURES.get(error.errno) if isinstance(error, OSError) and error.errno else None
    return f"{one_line(error)}; {cure}" if cure else one_line(error)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known word that a user may have meant."""
    folded: dict[str, str] = {}
    for word in known:
        folded.setdefault(word.casefold(), word)
    near = get_close_matches(name.casefold(), folded, 1, cutoff=0.5)
    return folded[near[0]] if near else None


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """A UsageError that names the nearest valid value, whatever the case of its letters."""
    known = sorted(known)
    near = nearest(name, known)
    hint = f"did you mean {near!r}? " if near else ""
    return UsageError(f"unknown {what} {name!r}; {hint}known: {', '.join(known) or 'none'}")


def exit_on_error(main: Callable[[], int | None]) -> None:
    """Run a program's main function and exit with what it returns.

    What a user or the system causes is one line on stderr and an exit code: a BenchError's own, 130 for an interrupt, 2
    for wrong options, 1 for what the operating system or a database refuses. A reader that has gone away (as of
    `| head`) is no error to tell: exit code 141, as of other programs. Anything else is a fault of this program and
    keeps its traceback.
    """
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names and prompts may hold what the locale cannot show
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
    """Of stdin, stdout and stderr those that are closed lead nowhere: else the next file that is opened would get the
    number of one, and what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free: this one


def _exit_code(error: Exception) -> int | None:
    if isinstance(error, BenchError):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return 141
    if isinstance(error, OSError) or type(error).__module__ == "sqlite3":
        return 1
    return 2 if hasattr(error, "format_message") else None  # the command line's own; their class is private to typer


def _tell(error: Exception, code: int) -> None:
    if isinstance(error, BrokenPipeError):
        _drop_output()
    elif hasattr(error, "format_message"):
        message = " ".join(error.format_message().split())
        if message:  # empty where the help was asked for by saying nothing
            _say(f"error: {legible(message)}")
    elif isinstance(error, OSError) and not error.filename and _output_fails():
        _say(f"error: standard output: {one_line(error)}")
    else:
        _say(f"error: {explained(error)}")


def _output_fails() -> bool:
    """Whether what a program prints cannot be written; a line tells it where nothing is buffered."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _say(text: str) -> None:
    """A line to stderr; where even that cannot be, the exit code must do."""
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
    """Let what is still to be written go nowhere: Python would complain of it while it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
