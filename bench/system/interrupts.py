"""Interrupts that wait for a good moment: a run that is asked to stop finishes its update and checkpoints."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from bench.errors import Interrupted

ASKED = b"\nstopping after this update; once more stops at once\n"
AT_ONCE = "stopped at once: the same command goes on from the last checkpoint"


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether to stop. The first SIGINT or SIGTERM asks for it, the same once more raises
    Interrupted where it comes.

    A signal that is ignored stays so, and SIGTERM is left to who has it in hand, as an executor's job. Only the main
    thread can be asked.
    """
    came: list[int] = []
    process = os.getpid()

    def take(number: int, _frame: object) -> None:
        if number in came:
            raise Interrupted(AT_ONCE)
        came.append(number)
        with suppress(OSError):
            if os.getpid() == process:  # a child that inherits this finishes its work as well, and says nothing
                os.write(2, ASKED)  # print may be in the middle of another line

    free, here = (signal.SIG_DFL, signal.default_int_handler), threading.current_thread() is threading.main_thread()
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if here and _is(number, free)]
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
    """SIGTERM raises KeyboardInterrupt, as SIGINT does: what there is must be printed, and what was started stopped.

    It is left to who has it in hand, as an executor's job.
    """
    if threading.current_thread() is not threading.main_thread() or not _is(signal.SIGTERM, (signal.SIG_DFL,)):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """SIGINT comes after. Processes that are started meanwhile never get one: who started them stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
