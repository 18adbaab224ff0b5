"""Interrupts: a run that is asked to stop finishes its update and saves a checkpoint; other commands stop cleanly."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from bench.errors import Interrupted

ASKED = b"\nstopping after this update; interrupt again to stop now\n"
AT_ONCE = "stopped at once: rerun the command to resume from the last checkpoint"
HELD = {signal.SIGINT, signal.SIGHUP}
"""Signals that a terminal sends to all processes of a command."""


def hung_up(_number: int, _frame: object) -> None:
    """Handle SIGHUP, which means that the terminal was closed, as an interrupt."""
    # The signal often arrives twice, from the shell and from the system.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _without_terminal()
    raise KeyboardInterrupt


ENDING = {signal.SIGTERM: signal.default_int_handler, signal.SIGHUP: hung_up}
"""Signals that count as interrupts in every command -> their handlers."""


def _without_terminal() -> None:
    """Redirect stdout and stderr to the null device if their terminal was closed, because printing would fail."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether to stop.

    The first SIGINT, SIGTERM or SIGHUP asks to stop. A second signal of the same kind raises Interrupted at once,
    except for SIGHUP, which a closed terminal may send twice. Ignored signals stay ignored, and a handler that somebody
    else has set, such as an executor's for SIGTERM, is kept. Outside the main thread no signal is handled.
    """
    came: list[int] = []
    process = os.getpid()

    def take(number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            _without_terminal()
        elif number in came:
            raise Interrupted(AT_ONCE)
        came.append(number)
        with suppress(OSError):
            # A child process inherits this handler. It finishes its work as well, but must not repeat the message.
            if os.getpid() == process:
                # The signal may have interrupted print, which is not reentrant.
                os.write(2, ASKED)

    replaceable = (signal.SIG_DFL, signal.default_int_handler, hung_up)
    candidates = (signal.SIGINT, *ENDING) if _in_main_thread() else ()
    numbers = [number for number in candidates if _is(number, replaceable)]
    before = {number: signal.signal(number, take) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is(number: int, handlers: tuple) -> bool:
    """Return whether a signal's current handler is one of these."""
    return signal.getsignal(number) in handlers


@contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt in the block, as SIGINT does.

    A command can then print its results so far and stop the processes that it started. Handlers that somebody else has
    set, such as an executor's job or nohup, are kept.
    """
    candidates = ENDING if _in_main_thread() else ()
    numbers = [number for number in candidates if _is(number, (signal.SIG_DFL,))]
    for number in numbers:
        signal.signal(number, ENDING[number])
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def held_back() -> Iterator[None]:
    """Defer SIGINT and SIGHUP to the end of the block.

    Processes that are started in the block inherit the mask and never receive these signals; their parent stops them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
