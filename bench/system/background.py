"""Work that goes on in a thread while its caller does something else."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


def begin(work: Callable[[], Result]) -> Callable[[], Result]:
    """Start `work` in a thread; the returned function waits for its result, or raises what it raised.

    The thread does not keep the process alive: an interrupted command ends without waiting for a slow server.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # whatever it is, it is raised where the result is asked for
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return done.result
