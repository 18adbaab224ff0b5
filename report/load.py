"""Reading the records that a comparison names."""

import json
from pathlib import Path

from bench.errors import MissingError, UsageError, one_line
from bench.records import Record


def comparison(path: Path) -> tuple[dict[str, list[Record]], tuple[str, ...]]:
    """Finished runs by line of a comparison-*.json (its run folders lie beside it), and the tasks.

    Raises UsageError for a file that is no such record, MissingError if none of its runs is there.
    """
    try:
        lines = json.loads(path.read_text())["lines"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a record of bench compare: {one_line(error)}") from error
    groups = {line["label"]: records(path.parent, line["runs"]) for line in lines}
    groups = {label: found for label, found in groups.items() if found}
    if not groups:
        raise MissingError(f"no finished run of {path} lies beside it")
    return groups, tuple(next(iter(groups.values()))[0].summary["models"]["student"])


def records(root: Path, folders: list[str]) -> list[Record]:
    """Records of finished runs in a results folder."""
    found = []
    for name in folders:
        folder = root / name
        if (folder / "summary.json").is_file():
            summary, spec = (json.loads((folder / f"{part}.json").read_text()) for part in ("summary", "spec"))
            evaluations, probes = (_rows(folder / f"{part}.jsonl") for part in ("evaluations", "probes"))
            found.append(Record(summary, evaluations, spec["spec"]["params"], probes))
    return found


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
