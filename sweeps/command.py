"""`bench sweep`: starts, joins or resumes a study and shows its results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import DryRun, Executor, ProfileFile, Slurm

if TYPE_CHECKING:
    import optuna

    from sweeps.storage import Place
    from sweeps.study import StudySpec


def sweep(
    study: Annotated[Path, typer.Argument(help="YAML file of the study, or the name of one in sweeps/.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Number of parallel workers.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="URL of an Optuna RDB storage, or env:NAME to read the URL from an environment variable. Default: a "
            "journal file. A URL with a password is passed to jobs in the variable BENCH_STORAGE, never in a file.",
        ),
    ] = None,
    results: Annotated[
        Path, typer.Option("--results", help="Folder of the studies; it must be inside a folder named 'results'.")
    ] = Path("results/sweeps"),
    dry_run: DryRun = False,
    executor: Executor = "inline",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Search settings with an Optuna study. Rerun the command to resume; run it elsewhere to add a worker."""
    from bench.config.trackers import check_trackers
    from bench.errors import PartialError, UsageError
    from bench.jobs.placement import placement
    from bench.system.files import results_root
    from bench.system.places import check_writable
    from bench.training.teacher_sets import check_teachers
    from sweeps.storage import Place, check_storage, for_jobs, storage_url
    from sweeps.study import open_study, read_study

    spec, where = read_study(study), placement(executor, profile, slurm)
    if where.executor == "inline" and workers > 1:
        raise UsageError("--executor inline runs one worker; use --executor local or slurm for several")
    place = Place(results_root(results) / spec.name, storage_url(storage))
    example = spec.run(spec.example(), spec.seed_list[0])
    check_teachers([example])
    check_trackers(example.trackers)
    if not check_storage(place):
        check_writable(place.folder)
    if dry_run:
        from sweeps.dryrun import explain_study

        explain_study(spec, place, where, workers)
        return
    # Imported last: they load torch, which a dry run and a refused study do without.
    from bench.cli.closing import write_report
    from sweeps.summary import show, store, summarise
    from sweeps.worker import Claims, complete

    def close(found) -> dict:
        summary = summarise(spec, found, place)
        try:
            show(spec, summary, place)
        finally:  # stored even if printing fails, for example because the terminal was closed
            store(summary, place)
        write_report(place.folder, place.folder / "report")
        return summary

    if where.executor == "inline":
        close(_work_here(spec, place))
        return
    from bench.jobs.dispatch import dispatch
    from bench.jobs.launches import Job

    # Created here under the lock: workers that start together must not create one database schema at the same time.
    with Claims(place.folder / "trials").alone():
        found = open_study(spec, place)
    address = for_jobs(storage)
    task = {"study": spec.model_dump(mode="json"), "storage": address}
    jobs = [Job(f"worker {index}", task) for index in range(workers)]
    device = spec.run(spec.example(), spec.seed_list[0]).device

    def report(label: str, error: str | None) -> None:
        print(f"{label}: {error or 'done'}")

    failures = dispatch(jobs, take_trials, place.folder, where, device, report)
    summary = close(found)
    # A worker that died does not matter if the others finished its trials.
    lacks = any(row["value"] is None for row in summary.get("confirmed", []))
    if failures and (lacks or not complete(spec, found, place)):
        raise PartialError("; ".join(f"{label}: {error}" for label, error in failures.items()))


def take_trials(work: dict[str, Any], folder: Path) -> None:
    """The job of one worker: carry out trials until the study has as many as it asks for.

    `work`: the study's settings under "study", and its storage as --storage takes it under "storage".
    """
    from sweeps.storage import Place, storage_url
    from sweeps.study import StudySpec

    spec = StudySpec.model_validate(work["study"])
    place = Place(folder, storage_url(work["storage"]))
    _work_here(spec, place)


def _work_here(spec: "StudySpec", place: "Place") -> "optuna.Study":
    """Carry out trials in this process, then their confirmation, with messages on stderr."""
    from bench.printing import terminal
    from sweeps.confirm import confirm
    from sweeps.worker import work

    console = terminal(stderr=True)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    study = work(spec, place, say)
    confirm(spec, study, place, say)
    return study
