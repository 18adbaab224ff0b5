"""`bench sweep`: make or join a study, and show what it found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import Executor, ProfileFile, Slurm

if TYPE_CHECKING:
    import optuna

    from sweeps.storage import Place
    from sweeps.study import StudySpec


def sweep(
    study: Annotated[Path, typer.Argument(help="A study's YAML file, or the name of one in sweeps/.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="How many take trials side by side.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="URL of an Optuna RDB storage, or env:NAME for the one in an environment variable; default: a journal "
            "file. A URL with a password reaches jobs by the environment (BENCH_STORAGE), never by a file.",
        ),
    ] = None,
    results: Annotated[Path, typer.Option("--results", help="Folder for studies; must lie in 'results'.")] = Path(
        "results/sweeps"
    ),
    executor: Executor = "inline",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Run, join or continue a study of settings: the same command again goes on, another terminal's helps."""
    from bench.cli.closing import write_report
    from bench.errors import PartialError, UsageError
    from bench.jobs.placement import placement
    from bench.system.files import results_root
    from bench.training.teacher_sets import check_teachers
    from sweeps.storage import Place, check_storage, for_jobs, storage_url
    from sweeps.study import open_study, read_study
    from sweeps.summary import show, store, summarise
    from sweeps.worker import Claims, complete

    spec, where = read_study(study), placement(executor, profile, slurm)
    place = Place(results_root(results) / spec.name, storage_url(storage))
    check_teachers([spec.run(spec.example(), spec.seed_list[0])])
    check_storage(place)

    def close(found) -> None:
        summary = summarise(spec, found, place)
        try:
            show(spec, summary, place)
        finally:  # neither is worth the other: what cannot be printed is stored, what cannot be stored was printed
            store(summary, place)
        write_report(place.folder, place.folder / "report")

    if where.executor == "inline":
        if workers > 1:
            raise UsageError("several workers need --executor local or slurm")
        close(_work_here(spec, place))
        return
    from bench.jobs.dispatch import dispatch
    from bench.jobs.launches import Job

    with Claims(place.folder / "trials").alone():
        found = open_study(spec, place)
    address = for_jobs(storage)
    task = {"study": spec.model_dump(mode="json"), "storage": address}
    jobs = [Job(f"worker {index}", task) for index in range(workers)]
    device = spec.run(spec.example(), spec.seed_list[0]).device
    report = lambda label, error: print(f"{label}: {error or 'done'}")  # noqa: E731
    failures = dispatch(jobs, take_trials, place.folder, where, device, report)
    close(found)
    if failures and not complete(spec, found, place):  # one worker's death is nothing where the others did the work
        raise PartialError("; ".join(f"{label}: {error}" for label, error in failures.items()))


def take_trials(work: dict[str, Any], folder: Path) -> None:
    """What the job of a worker does: carry out trials of a study, given as its settings, until it has all its own."""
    from sweeps.storage import Place, storage_url
    from sweeps.study import StudySpec

    _work_here(StudySpec.model_validate(work["study"]), Place(folder, storage_url(work["storage"])))


def _work_here(spec: "StudySpec", place: "Place") -> "optuna.Study":
    from bench.printing import terminal
    from sweeps.worker import work

    console = terminal(stderr=True)
    return work(spec, place, lambda text: console.print(text, soft_wrap=True))
