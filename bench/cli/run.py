"""`bench run` and `bench teach`: carry out specs in this process or as jobs, and print their results."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.cli.console import Console, print_next
from bench.cli.teacher_use import use_lines
from bench.config.spec import Spec
from bench.errors import BenchError, Interrupted, PartialError, UsageError, one_line
from bench.jobs.placement import Placement
from bench.jobs.runs import by_label, carry_out_runs, spec_of
from bench.system.workers import connect
from bench.training.execute import Session, execute
from bench.training.sheet import try_contact_sheet
from bench.training.teacher_sets import keep_teachers, teacher_sets


def run_seeds(specs: list[Spec], root: Path, placement: Placement) -> None:
    """Carry out the seeds of one spec and print one table.

    Raises BenchError if the only seed failed, and PartialError if some of several failed.
    """
    if placement.executor == "inline":
        _here(specs, root)
        return
    summaries, failures = _as_jobs(specs, root, placement)
    if summaries:
        spec = specs[0].with_seed(summaries[0]["seed"])
        with Console() as console:
            console.table(summaries, try_contact_sheet(spec, root, summaries[0], console.say))
            print_next(summaries, root, spec.full_finetuning)
    _raise_failures(failures, specs)


def train(work: dict[str, Any], root: Path) -> None:
    """Carry out one run in a job and print its table; `work` is the run's spec as plain data."""
    _here([spec_of(work)], root)


def _here(specs: list[Spec], root: Path) -> None:
    """Carry out specs one after another in this process. Raises Interrupted on Ctrl-C or SIGTERM."""
    with going_on():
        _one_by_one(specs, root)


@contextmanager
def going_on() -> Iterator[None]:
    """Turn a KeyboardInterrupt at any point into an Interrupted whose message says how to resume."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted("interrupted: rerun the command to resume from the last checkpoint") from None


def _one_by_one(specs: list[Spec], root: Path) -> None:
    summaries, failures = [], []
    workers = connect(specs[0].device)
    with Console(quiet=not workers.main) as console:
        for spec in specs:
            try:
                summaries.append(execute(spec, Session(root, workers, console.say, console.listen)))
            except UsageError:
                raise
            except BenchError as error:
                # With several processes the run cannot go on to the next seed: the others wait for this one in the
                # collective operations of the failed seed.
                if len(specs) == 1 or workers.count > 1:
                    raise
                failures.append(f"seed {spec.seed}: {one_line(error)}")
        if summaries and workers.main:
            first = summaries[0]
            sheet = try_contact_sheet(specs[0].with_seed(first["seed"]), root, first, console.say)
            console.table(summaries, sheet)
            print_next(summaries, root, specs[0].full_finetuning)
    if failures:
        raise PartialError("; ".join(failures))


def teach_tasks(specs: list[Spec], root: Path, placement: Placement) -> None:
    """Train teachers, print a table for each, and collect them in a folder for --teachers.

    As jobs, raises BenchError if the only teacher failed, and PartialError if some of several failed.
    """
    if placement.executor == "inline":
        workers = connect(specs[0].device)
        with going_on(), Console(quiet=not workers.main) as console:
            for spec in specs:
                summary = execute(spec, Session(root, workers, console.say, console.listen))
                if workers.main:
                    console.table([summary])
        if workers.main:
            _keep(specs, root)
        return
    summaries, failures = _as_jobs(specs, root, placement)
    with Console() as console:
        for summary in summaries:
            console.table([summary])
    _raise_failures(failures, specs)
    _keep(specs, root)


def _keep(specs: list[Spec], root: Path) -> None:
    """Collect the teachers' adapters in folders for --teachers, and print the commands that use them."""
    sets = teacher_sets(specs, root)
    keep_teachers(sets)
    print("\n".join(use_lines(sets, root)))


def _as_jobs(specs: list[Spec], root: Path, placement: Placement) -> tuple[list[dict], dict[str, str]]:
    """Summaries of the finished runs, and the errors of the others by label."""
    runs = by_label(specs, root)
    failures = carry_out_runs(runs, train, placement)
    return [run.summary for run in runs.values() if run.summary], failures


def _raise_failures(failures: dict[str, str], specs: list[Spec]) -> None:
    """Raise one error with the message of every failed run."""
    if failures:
        kind = BenchError if len(specs) == 1 else PartialError
        raise kind("; ".join(f"{label}: {error}" for label, error in failures.items()))
