"""Checks that one scorer scores a run from start to finish.

A scorer's address is not part of a run's identity. Its name (engine, version, weights) is therefore stored with the run
and compared whenever the run is resumed or reused.
"""

from functools import cache
from pathlib import Path

from bench.config.resolve import describe
from bench.config.scorers import URL
from bench.errors import BenchError, UsageError
from bench.scoring.loading import load_task
from bench.store.run import Run


def refuse_other_scorers(folder: Path, before: object, now: dict[str, str]) -> None:
    """Raise UsageError for a task whose scorer's name differs from the recorded one; a missing record passes."""
    for task, name in now.items():
        known = _entry(before, task)
        if known and known != name:
            raise UsageError(
                f"{folder} was scored by {known!r} for {task}, but the scorer is now {name!r}: use the same scorer, "
                "move the run away or use another --results folder"
            )


def check_scored(run: Run) -> None:
    """Raise UsageError if the scorers requested now differ from those that scored a finished run.

    A scorer's name is requested only if a server scores the task now or did when the run last started. If the server
    does not answer, its recorded name is trusted as long as the address is the recorded one. Otherwise the error of
    `load_task` or of the scorer is raised.
    """
    starts = run.starts()
    started = _entry(starts[-1], "scorers") if starts else None
    before = _entry(run.summary, "scorers")
    for task in run.spec.tasks:
        sources = run.spec.scorers.get(task, {})
        known = _entry(_entry(started, task), URL)
        if sources.get(URL) is None and known is None:
            continue
        world = describe(run.spec.backbone).world
        name = _name(task, world, tuple(sorted(sources.items())), run.spec.device)
        if isinstance(name, str):
            refuse_other_scorers(run.folder, before, {task: name})
        elif sources.get(URL) != known:
            raise name


def _entry(record: object, key: str) -> object:
    """An entry of a record; None if absent, as in older records."""
    return record.get(key) if isinstance(record, dict) else None


@cache
def _name(task: str, world: str, sources: tuple[tuple[str, str], ...], device: str) -> str | BenchError:
    """A scorer's name, or the error that prevented reading it. Cached: many runs may share one scorer."""
    try:
        return load_task(task, world, dict(sources), device).scorer_name
    except BenchError as error:
        return error
