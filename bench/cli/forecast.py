"""What several runs will cost, and the teachers that they need: for the dry runs of commands that make runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.config.resolve import TRAINED_HERE, describe, teacher_spec
from bench.config.spec import Spec
from bench.jobs.launches import Job
from bench.jobs.runs import spec_of
from bench.prediction.cost import (
    GpuTime,
    assumptions,
    evaluation_time,
    held_out,
    run_nfe,
    training_time,
    unknown_images,
)
from bench.store.damage import checkpoint_state
from bench.store.run import Run
from bench.store.shapes import check_state
from bench.training.teacher_sets import near
from bench.training.teachers import locate, training_nfe
from bench.weights.hub import PREFIX as HUB

SHIPPED, TRAIN = TRAINED_HERE


@dataclass(frozen=True)
class Forecast:
    """The predicted training NFE of some runs of which some may be finished or started."""

    finished: int
    resumed: int
    """Number of runs that resume from a checkpoint."""
    new: int
    total: int
    """Training NFE of all the runs."""
    to_do: int
    """Training NFE that is still to be spent: without finished runs and without what checkpoints hold."""

    def __add__(self, other: "Forecast") -> "Forecast":
        return Forecast(
            self.finished + other.finished,
            self.resumed + other.resumed,
            self.new + other.new,
            self.total + other.total,
            self.to_do + other.to_do,
        )

    @property
    def states(self) -> list[str]:
        """The number of runs in each state, as text, such as "3 finished"; without those in which there is none."""
        counts = {"finished": self.finished, "resumed": self.resumed, "new": self.new}
        return [f"{count} {state}" for state, count in counts.items() if count]

    @property
    def state(self) -> str:
        """The state of a single run."""
        return self.states[0].removeprefix("1 ")


NOTHING = Forecast(0, 0, 0, 0, 0)
"""The forecast of no runs."""


def forecast(run: Run) -> Forecast:
    """The forecast of one run, whose budget must not be in seconds. Raises DamagedError for a damaged checkpoint."""
    nfe = run_nfe(run.spec) or 0
    if run.summary is not None:
        return Forecast(1, 0, 0, nfe, 0)
    if not run.checkpoint.exists():
        return Forecast(0, 0, 1, nfe, nfe)
    state = checkpoint_state(run.checkpoint)
    check_state(run.checkpoint, state)
    spent = state["meter"]["evaluations"].get("training", 0)
    return Forecast(0, 1, 0, nfe, max(0, nfe - spent))


def counted(count: int, noun: str) -> str:
    """A count and its noun as text, such as "1 run" or "2 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def seeds_text(seeds: list[int]) -> str:
    """Seeds as text, such as "seeds 0, 1"."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def of_jobs(jobs: list[Job], root: Path) -> Forecast:
    """The forecast of the runs that these jobs carry out."""
    specs = [spec_of(job.work) for job in jobs]
    return sum((forecast(Run(root, spec, describe(spec.backbone).fingerprint())) for spec in specs), NOTHING)


def teacher_nfe(spec: Spec, root: Path) -> float:
    """Training NFE of all teachers of a run, as recorded or predicted; NaN if that of one is not known.

    Nothing is downloaded: the cost of a teacher from a hub is not known.
    """
    return sum(_teacher_nfe(spec, task, root) for task in spec.teachers)


def _teacher_nfe(spec: Spec, task: str, root: Path) -> float:
    """Training NFE of the teacher of one task."""
    source, descriptor = spec.teachers[task], describe(spec.backbone)
    if source == TRAIN:
        theirs = teacher_spec(spec, task)
        nfe = run_nfe(theirs)
        return math.nan if nfe is None else nfe
    if source.startswith(HUB):
        return math.nan
    alone = spec.model_copy(update={"teachers": {task: source}})
    return training_nfe(locate(alone, descriptor, root, descriptor.fingerprint()))[task]


def teacher_lines(specs: list[Spec], first: list[Job], root: Path) -> Iterator[str]:
    """Where the teachers of these runs come from, as lines of text by task; `first` are jobs that train some first."""
    missing = {str(job.run): of_jobs([job], root) for job in first}
    found: dict[str, list[str]] = {}
    for spec in specs:
        for task, source in spec.teachers.items():
            origins, origin = found.setdefault(task, []), _origin(spec, task, source, root, missing)
            if origin not in origins:
                origins.append(origin)
    for task, origins in found.items():
        yield from (f"teacher of {task}: {origin}" for origin in origins)


def _origin(spec: Spec, task: str, source: str, root: Path, missing: dict[str, Forecast]) -> str:
    """Where one teacher comes from; `missing` is run folder -> forecast of the teachers that are trained first."""
    if source == SHIPPED:
        return f"shipped with {spec.backbone}"
    if source != TRAIN:
        return source
    run = Run(root, teacher_spec(spec, task), describe(spec.backbone).fingerprint())
    found = missing.get(run.folder.name)
    if found is None:
        # Finished, or not needed because the runs that would use it are.
        return f"trained before ({near(run.folder)})" if run.summary is not None else "not needed any more"
    return f"trained first, seed {spec.seed} ({found.state}, {found.to_do:,} NFE)"


def hours_lines(named: dict[str, tuple[Spec, int]], how: str = "at most") -> Iterator[str]:
    """GPU-hours as lines of text, for label -> (spec, number of such runs still to be made).

    There are none for a backbone whose size is not declared, such as `micro`. Runs that resume count as whole runs;
    `how` says in which sense their total holds.
    """
    specs = [spec for spec, count in named.values() if count]
    if not specs:
        return
    descriptor = describe(specs[0].backbone)
    if not descriptor.size:
        return
    training: GpuTime | None = GpuTime()
    evaluation: GpuTime | None = None
    unknown: dict[str, None] = {}
    for label, (spec, count) in named.items():
        if not count:
            continue
        size = descriptor.size(spec.compute)
        if size is None:
            yield "hours: not predicted, because the model's size is not known before it is downloaded"
            return
        trained, evaluated = training_time(spec, size), evaluation_time(spec, size)
        yield f"{label}: training {_known(trained)}, held-out evaluations of the student {_known(evaluated)} per run"
        training = None if training is None or trained is None else training + trained * count
        if evaluated is not None:
            evaluation = (evaluation or GpuTime()) + evaluated * count
        unknown |= dict.fromkeys(unknown_images(held_out(spec, descriptor.world)))
    yield (
        f"all unfinished runs on one GPU, {how}: training {_known(training)}, held-out evaluations of the students "
        f"{_known(evaluation)}"
    )
    yield from unknown
    yield "evaluation of the base and the teachers, once per results folder: not included"
    for compute in {spec.compute.precision: spec.compute for spec in specs}.values():
        yield from assumptions(compute)


def _known(time: GpuTime | None) -> str:
    return "not known" if time is None else str(time)
