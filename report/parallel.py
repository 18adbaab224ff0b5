"""Work on several cores in forked processes, which inherit what cannot be pickled."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def cores_for(pieces: int) -> int:
    """Number of processes for so many pieces of work: at most the cores that this process may use."""
    return min(len(os.sched_getaffinity(0)), pieces)


def forked(function: Callable[[Given], Made], work: Sequence[Given], cores: int) -> Iterator[Made]:
    """The function's results in the order of the work.

    Ends early, without an error, if there can be no more processes or one was killed for its memory: callers do the
    rest themselves.
    """
    try:
        with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("fork"), initializer=_deaf) as pool:
            yield from pool.map(function, work)
    except (OSError, BrokenExecutor):
        return


def _deaf() -> None:
    """Leave interrupts to the parent process; each child would otherwise print a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
