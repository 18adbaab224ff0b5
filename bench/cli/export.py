"""`bench export`: a run's student in the formats of stock tools, with a model card."""

import shutil
from pathlib import Path

from bench.errors import MissingError, UsageError
from bench.results.card import card
from bench.results.result import Result
from bench.system.files import described, write_atomic
from bench.system.places import check_writable


def export(run: Path, output: Path, merged: bool) -> None:
    """Copy a run's student to a new folder, or merge it into its pipeline and save that, and write a model card.

    Raises UsageError for a folder that is no run or an output that exists, and MissingError before the run's end.
    """
    if not (run / "spec.json").is_file():
        raise UsageError(f"{run} is not the folder of a run: it has no spec.json")
    result = Result(run)
    if result.summary is None:
        raise MissingError(f"{run} has not finished: rerun its command to resume it")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists; choose a new folder")
    if output.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{output} is in the run's own folder; choose another one")
    # Records may come from others, and an export is made to be published.
    if links := [path for path in (result.weights, *result.weights.rglob("*")) if path.is_symlink()]:
        raise UsageError(f"{links[0]} is a symbolic link; an export would publish what it leads to")
    with described(run / "summary.json"):
        text = card(result, merged)
    if merged:
        pipeline = result.pipeline(merged=True)
        check_writable(output)
        pipeline.save_pretrained(output)
    else:
        check_writable(output)
        shutil.copytree(result.weights, output, dirs_exist_ok=True)
    write_atomic(output / "README.md", text.encode())
    print(output)
