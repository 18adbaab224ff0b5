"""A run is scored by one scorer from its start to its end. Where that answers is no part of a run's identity, so its
name (engine, version, weights) is kept and compared."""

from functools import cache
from pathlib import Path

from bench.config.resolve import describe
from bench.config.scorers import URL
from bench.errors import BenchError, UsageError
from bench.scoring.loading import load_task
from bench.store.run import Run


def refuse_other_scorers(folder: Path, before: object, now: dict[str, str]) -> None:
    """Raise UsageError for a task whose scorer's name is not the one of before, as far as a record says."""
    for task, name in now.items():
        if (known := _entry(before, task)) and known != name:
            raise UsageError(
                f"{folder} was scored by {known!r} for {task}, and now it would be {name!r}: name the same "
                "scorer, move the run away or use another --results"
            )


def check_scored(run: Run) -> None:
    """Raise UsageError if a finished run was scored by another scorer than is asked for now.

    A scorer is asked for its name only where a server scores, or did. One that does not answer any more is believed
    where the run was last told of that very address; elsewhere what `load_task` and the scorer raise is raised.
    """
    starts = run.starts()
    told = _entry(starts[-1], "scorers") if starts else None
    before = _entry(run.summary, "scorers")
    for task in run.spec.tasks:
        sources = run.spec.scorers.get(task, {})
        known = _entry(_entry(told, task), URL)
        if sources.get(URL) is None and known is None:
            continue
        name = _name(task, describe(run.spec.backbone).world, tuple(sorted(sources.items())), run.spec.device)
        if isinstance(name, str):
            refuse_other_scorers(run.folder, before, {task: name})
        elif sources.get(URL) != known:
            raise name


def _entry(record: object, key: str) -> object:
    """An entry of a record; None where there is none, as in records of before."""
    return record.get(key) if isinstance(record, dict) else None


@cache
def _name(task: str, world: str, sources: tuple[tuple[str, str], ...], device: str) -> str | BenchError:
    """A scorer's name, or why it cannot be had; asked once, however many runs have it."""
    try:
        return load_task(task, world, dict(sources), device).scorer_name
    except BenchError as error:
        return error
