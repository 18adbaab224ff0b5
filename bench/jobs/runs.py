"""Runs as jobs: finished runs are skipped, and each missing teacher is trained once before the runs that need it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.errors import BenchError
from bench.jobs.dispatch import dispatch, refuse_placement
from bench.jobs.launches import Job, launches
from bench.jobs.placement import Placement
from bench.jobs.status import log_lines
from bench.jobs.submitted import CarryOut
from bench.store.run import Run
from bench.training.same_scorers import check_scored
from bench.training.teachers import to_train


def spec_of(work: dict[str, Any]) -> Spec:
    """Read the spec from the work of a job that makes a run."""
    return Spec.model_validate(work)


def by_label(specs: list[Spec], root: Path) -> dict[str, Run]:
    """Return label -> run of specs that differ in tasks or seed only."""
    fingerprint = describe(specs[0].backbone).fingerprint()
    return {f"{'+'.join(spec.tasks)}, seed {spec.seed}": Run(root, spec, fingerprint) for spec in specs}


@dataclass(frozen=True)
class RunPlan:
    """What carrying out some runs takes: which are finished, and the jobs of the others and of missing teachers."""

    finished: dict[str, Run]
    """Label -> run that is only read."""
    waiting: dict[str, Run]
    """Label -> run that starts, or resumes from its checkpoint."""
    teachers: list[Job]
    """Jobs of the teachers that the waiting runs need trained first, each once."""
    jobs: list[Job]
    """Jobs of the waiting runs."""


def plan_runs(members: dict[str, Run], placement: Placement) -> RunPlan:
    """Return what carrying out these runs, given by label, takes. Writes nothing.

    Raises UsageError if a finished run was scored by other scorers, or if the placement cannot carry out the others.
    """
    waiting = {label: run for label, run in members.items() if not run.summary}
    finished = {label: run for label, run in members.items() if label not in waiting}
    for run in finished.values():
        check_scored(run)
    if not waiting:
        return RunPlan(finished, {}, [], [])
    first = next(iter(waiting.values()))
    root = first.folder.parent
    teachers, needs = teacher_jobs(list(waiting.values()), root)
    jobs = []
    for label, run in waiting.items():
        name = run.folder.name
        jobs.append(_job(label, run.spec, name, needs[name]))
    refuse_placement(placement, root, first.spec.device)
    return RunPlan(finished, waiting, teachers, jobs)


def carry_out_runs(members: dict[str, Run], train: CarryOut, placement: Placement) -> dict[str, str]:
    """Carry out runs, given by label, with progress on stderr. Returns label -> error of those that failed."""
    from bench.printing import progress_bar

    if not members:
        return {}
    runs = list(members.values())
    root, device = runs[0].folder.parent, runs[0].spec.device
    plan = plan_runs(members, placement)
    jobs = [*plan.teachers, *plan.jobs]
    with progress_bar() as progress:
        finished = len(plan.finished)
        total = finished + len(jobs)
        bar = progress.add_task(f"{len(members)} runs, {placement.executor}", total=total, completed=finished)

        def report(label: str, error: str | None) -> None:
            progress.update(bar, advance=1)
            progress.console.print(f"{label}: {error or 'done'}", soft_wrap=True)

        failures = dispatch(jobs, train, root, placement, device, report)
    return {label: error for label, error in failures.items() if label in members}


def teacher_jobs(runs: list[Run], root: Path) -> tuple[list[Job], dict[str, tuple[str, ...]]]:
    """Return one job per teacher that these runs need trained, and run folder -> labels of the jobs that it needs."""
    jobs: dict[str, Job] = {}
    needs: dict[str, tuple[str, ...]] = {}
    for run in runs:
        labels = []
        for teacher in to_train(run.spec, root, run.backbone_hash):
            spec, name = teacher.spec, teacher.folder.name
            label = f"teacher for {spec.tasks[0]}, seed {spec.seed}"
            # Teachers of one task and seed may still differ, for example in precision.
            if any(other.label == label and other.run != name for other in jobs.values()):
                label = f"{label} ({name})"
            labels.append(label)
            jobs[name] = _job(label, spec, name)
        needs[run.folder.name] = tuple(labels)
    return list(jobs.values()), needs


def _job(label: str, spec: Spec, run: str, needs: tuple[str, ...] = ()) -> Job:
    return Job(label, spec.model_dump(mode="json"), run, needs)


def carry_out_command(
    label: str, work: dict[str, Any], carry_out: CarryOut, root: Path, placement: Placement, device: str
) -> None:
    """Carry out work that makes no run as a job, and print its output. Raises BenchError if it fails."""
    job = Job(label, work)
    failures = dispatch([job], carry_out, root, placement, device, lambda *_: None)
    if failures:
        raise BenchError(f"{label}: {failures[job.label]}")
    # Another command may have submitted the same work, so the job is looked up by its content, the latest first.
    launch, done = next(
        (launch, other)
        for launch in reversed(launches(root))
        for other in launch.jobs
        if (other.label, other.digest) == (job.label, job.digest)
    )
    lines = log_lines(launch.log(done, "out"))
    print("\n".join(line for line in lines if not line.startswith("submitit ")))
