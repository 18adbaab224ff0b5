"""`bench run` and `bench teach`: specs of one method over seeds, here or as jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.cli.console import Console
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.errors import BenchError, Interrupted, PartialError, UsageError, one_line
from bench.jobs.placement import Placement
from bench.jobs.runs import carry_out_runs, spec_of
from bench.store.run import Run
from bench.system.workers import connect
from bench.training.execute import Session, execute
from bench.training.sheet import try_contact_sheet
from bench.training.teacher_sets import keep_teachers


def run_seeds(specs: list[Spec], root: Path, placement: Placement) -> None:
    """Carry out the seeds of one spec and print one table. Raises PartialError if some of several failed."""
    if placement.executor == "inline":
        _here(specs, root)
        return
    summaries, failures = _as_jobs(specs, root, placement)
    if summaries:
        spec = specs[0].with_seed(summaries[0]["seed"])
        with Console() as console:
            console.table(summaries, try_contact_sheet(spec, root, summaries[0], console.say))
    _tell(failures, specs)


def train(work: dict[str, Any], root: Path) -> None:
    """Carry out one run, given as its spec, and print its table: what a job does."""
    _here([spec_of(work)], root)


def _here(specs: list[Spec], root: Path) -> None:
    """One after another in this process. Raises Interrupted where it is interrupted."""
    with going_on():
        _one_by_one(specs, root)


@contextmanager
def going_on() -> Iterator[None]:
    """An interrupt at any moment says how to go on."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted("interrupted: the same command goes on from the last checkpoint") from None


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
                if len(specs) == 1 or workers.count > 1:  # the others wait in this seed's exchanges
                    raise
                failures.append(f"seed {spec.seed}: {one_line(error)}")
        if summaries and workers.main:
            sheet = try_contact_sheet(specs[0].with_seed(summaries[0]["seed"]), root, summaries[0], console.say)
            console.table(summaries, sheet)
    if failures:
        raise PartialError("; ".join(failures))


def teach_tasks(specs: list[Spec], root: Path, placement: Placement) -> None:
    """Train teachers and print a table for each. Raises PartialError if some failed as jobs."""
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
    _tell(failures, specs)
    _keep(specs, root)


def _keep(specs: list[Spec], root: Path) -> None:
    """What was taught, as --teachers takes it."""
    print("\n".join(keep_teachers(specs, root)))


def _as_jobs(specs: list[Spec], root: Path, placement: Placement) -> tuple[list[dict], dict[str, str]]:
    """Summaries of the runs that ended well, and the errors of the others by label."""
    fingerprint = describe(specs[0].backbone).fingerprint()
    runs = {f"{'+'.join(spec.tasks)}, seed {spec.seed}": Run(root, spec, fingerprint) for spec in specs}
    failures = carry_out_runs(runs, train, placement)
    return [run.summary for run in runs.values() if run.summary], failures


def _tell(failures: dict[str, str], specs: list[Spec]) -> None:
    if failures:
        kind = BenchError if len(specs) == 1 else PartialError
        raise kind("; ".join(f"{label}: {error}" for label, error in failures.items()))
