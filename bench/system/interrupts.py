"""Interrupts that wait for a good moment: a run that is asked to stop finishes its update and checkpoints."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from bench.errors import Interrupted

ASKED = b"\nstopping after this update; once more stops at once\n"
AT_ONCE = "stopped at once: the same command goes on from the last checkpoint"
HELD = {signal.SIGINT, signal.SIGHUP}
"""What a terminal sends to all processes of a command."""


def hung_up(_number: int, _frame: object) -> None:
    """SIGHUP is an interrupt too: the terminal has gone. It often comes twice, from the shell and from the system."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _without_terminal()
    raise KeyboardInterrupt


ENDING = {signal.SIGTERM: signal.default_int_handler, signal.SIGHUP: hung_up}
"""Signals that are interrupts in every command, with their handlers."""


def _without_terminal() -> None:
    """Let what is printed from now on go nowhere if the terminal it went to has gone: printing would fail."""
    for number in (1, 2):
        try:
            os.write(number, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether to stop. The first SIGINT, SIGTERM or SIGHUP asks for it, the same once more
    raises Interrupted where it comes, but for SIGHUP, which a closed terminal may send twice.

    A signal that is ignored stays so, and SIGTERM is left to who has it in hand, as an executor's job. Only the main
    thread can be asked.
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
            if os.getpid() == process:  # a child that inherits this finishes its work as well, and says nothing
                os.write(2, ASKED)  # print may be in the middle of another line

    free, here = (signal.SIG_DFL, signal.default_int_handler, hung_up), _in_main_thread()
    numbers = [number for number in (signal.SIGINT, *ENDING) if here and _is(number, free)]
    before = {number: signal.signal(number, take) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is(number: int, handlers: tuple) -> bool:
    return signal.getsignal(number) in handlers


@contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does: what there is must be printed, and what was started
    stopped.

    They are left to who has them in hand, as an executor's job or nohup.
    """
    numbers = [number for number in ENDING if _in_main_thread() and _is(number, (signal.SIG_DFL,))]
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
    """SIGINT and SIGHUP come after. Processes that are started meanwhile never get one: who started them stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
