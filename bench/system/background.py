"""Work that goes on in a thread while its caller does something else."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Event, Thread
from typing import ClassVar, Generic, TypeVar

from bench.lazy import torch

PATIENCE_S = 10
"""How long an ending command waits for work under way; a thread that waits for a server can be left."""
Result = TypeVar("Result")


class Background(Generic[Result]):
    """Pieces of work that a thread does one after the other. Gradients are off in it, as in a scorer's caller."""

    running: ClassVar["set[Background]"] = set()
    """Work of this process that has not ended."""

    def __init__(self, pieces: Sequence[Callable[[], Result]]):
        """Begin with the first piece."""
        self._pieces, self._stop, self._done = pieces, Event(), Future[list[Result]]()
        # A daemon: a second interrupt ends the process even if a server does not answer.
        self._thread = Thread(target=self._run, daemon=True)
        self.running.add(self)
        self._thread.start()

    def results(self) -> list[Result]:
        """Wait for the results of all pieces. Raises what a piece raised; later pieces are not begun then."""
        return self._done.result()

    def stop(self) -> None:
        """Begin no other piece, and wait a while for the one under way."""
        self._stop.set()
        self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        found: list[Result] = []
        try:
            with torch.no_grad():
                for piece in self._pieces:
                    if self._stop.is_set():
                        break
                    found.append(piece())
            self._done.set_result(found)
        except BaseException as error:  # whatever it is, it is raised where the results are asked for
            self._done.set_exception(error)
        finally:
            self.running.discard(self)


def finish() -> None:
    """Stop all work of this process.

    To be called before a command or run ends by an error: Python aborts a process that ends while a thread computes.
    """
    for work in list(Background.running):
        work.stop()
