"""Runs as jobs: what is finished is left alone, teachers that are missing come first, each once."""

from pathlib import Path
from typing import Any

from bench.config.spec import Spec
from bench.errors import BenchError
from bench.jobs.dispatch import dispatch
from bench.jobs.launches import Job, launches
from bench.jobs.placement import Placement
from bench.jobs.status import log_lines
from bench.jobs.submitted import CarryOut
from bench.store.run import Run
from bench.training.same_scorers import check_scored
from bench.training.teachers import to_train


def spec_of(work: dict[str, Any]) -> Spec:
    """The spec of a job that makes a run."""
    return Spec.model_validate(work)


def carry_out_runs(members: dict[str, Run], train: CarryOut, placement: Placement) -> dict[str, str]:
    """Carry out runs by label, with progress on stderr. Returns label -> error of those that failed."""
    from bench.printing import progress_bar

    if not members:
        return {}
    runs = list(members.values())
    root, device = runs[0].folder.parent, runs[0].spec.device
    waiting = {label: run for label, run in members.items() if not run.summary}
    for run in (run for label, run in members.items() if label not in waiting):
        check_scored(run)
    jobs, needs = teacher_jobs(list(waiting.values()), root)
    jobs += [_job(label, run.spec, run.folder.name, needs[run.folder.name]) for label, run in waiting.items()]
    with progress_bar() as progress:
        total, ready = len(members) + len(jobs) - len(waiting), len(members) - len(waiting)
        bar = progress.add_task(f"{len(members)} runs, {placement.executor}", total=total, completed=ready)

        def report(label: str, error: str | None) -> None:
            progress.update(bar, advance=1)
            progress.console.print(f"{label}: {error or 'done'}", soft_wrap=True)

        failures = dispatch(jobs, train, root, placement, device, report)
    return {label: error for label, error in failures.items() if label in members}


def teacher_jobs(runs: list[Run], root: Path) -> tuple[list[Job], dict[str, tuple[str, ...]]]:
    """Jobs of every teacher that these runs need trained, each once; run folder -> labels of those it waits for."""
    jobs: dict[str, Job] = {}
    needs: dict[str, tuple[str, ...]] = {}
    for run in runs:
        labels = []
        for teacher in to_train(run.spec, root, run.backbone_hash):
            spec, name = teacher.spec, teacher.folder.name
            label = f"teacher for {spec.tasks[0]}, seed {spec.seed}"
            if any(other.label == label and other.run != name for other in jobs.values()):
                label = f"{label} ({name})"  # as by another precision
            labels.append(label)
            jobs[name] = _job(label, spec, name)
        needs[run.folder.name] = tuple(labels)
    return list(jobs.values()), needs


def _job(label: str, spec: Spec, run: str, needs: tuple[str, ...] = ()) -> Job:
    return Job(label, spec.record(), run, needs)


def carry_out_command(
    label: str, work: dict[str, Any], carry_out: CarryOut, root: Path, placement: Placement, device: str
) -> None:
    """Carry out work that makes no run as a job, and print what it printed. Raises BenchError if it fails."""
    job = Job(label, work)
    failures = dispatch([job], carry_out, root, placement, device, lambda *_: None)
    if failures:
        raise BenchError(f"{label}: {failures[job.label]}")
    same = lambda other: (other.label, other.digest) == (job.label, job.digest)  # noqa: E731
    launch = next(launch for launch in reversed(launches(root)) if any(map(same, launch.jobs)))
    done = next(filter(same, launch.jobs))
    print("\n".join(line for line in log_lines(launch.log(done, "out")) if not line.startswith("submitit ")))
