"""Errors a user can act on, each with its exit code."""

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches


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


def one_line(error: BaseException) -> str:
    """An exception's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """A UsageError that names the nearest valid value."""
    known = sorted(known)
    near = get_close_matches(name, known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UsageError(f"unknown {what} {name!r}; {hint}known: {', '.join(known) or 'none'}")


def exit_on_error(main: Callable[[], None]) -> None:
    """Run a module's main function; a BenchError becomes one line on stderr and its exit code."""
    try:
        main()
    except BenchError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
