"""Checks that one scorer scores a run from start to finish.

A scorer's address is not part of a run's identity. Its name (engine, version, weights) is therefore stored with the run
and compared whenever the run is resumed or reused.
"""

import json
from functools import cache
from pathlib import Path

from bench.config.resolve import describe
from bench.config.rewards import scorers_of
from bench.config.scorers import URL
from bench.errors import BenchError, UsageError
from bench.scoring.loading import load_tasks
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
    `load_tasks` or of the scorer is raised.
    """
    starts = run.starts()
    started = _entry(starts[-1], "scorers") if starts else None
    before = _entry(run.summary, "scorers")
    spec = run.spec
    for task in spec.tasks:
        scorers = scorers_of(task, spec.rewards)
        urls = [spec.scorers.get(scorer, {}).get(URL) for scorer in scorers]
        known = [_entry(_entry(started, scorer), URL) for scorer in scorers]
        if not any(urls) and not any(known):
            continue
        sources = {scorer: spec.scorers[scorer] for scorer in scorers if scorer in spec.scorers}
        weights = {task: spec.rewards[task]} if task in spec.rewards else {}
        world = describe(spec.backbone).world
        name = _name(task, world, json.dumps(sources, sort_keys=True), json.dumps(weights), spec.device)
        if isinstance(name, str):
            refuse_other_scorers(run.folder, before, {task: name})
        elif urls != known:
            raise name


def _entry(record: object, key: str) -> object:
    """An entry of a record; None if absent, as in older records."""
    return record.get(key) if isinstance(record, dict) else None


@cache
def _name(task: str, world: str, scorers: str, rewards: str, device: str) -> str | BenchError:
    """A scorer's name, or the error that prevented reading it. Cached: many runs may share one scorer.

    `scorers` and `rewards` are those sections of the spec as JSON, because a cache needs values that do not change.
    """
    try:
        return load_tasks((task,), world, json.loads(scorers), device, json.loads(rewards))[task].scorer_name
    except BenchError as error:
        return error
