"""Reading the records that a comparison names."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.errors import MissingError, UsageError, one_line
from bench.records import Record


@dataclass(frozen=True)
class Line:
    """One line of a comparison: a method with its settings, and its finished runs."""

    label: str
    records: list[Record]
    training_evaluations: float
    teacher_evaluations: float
    """What its teachers cost to train; 0 for methods without teachers."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.records[0].summary["models"]["student"])

    @property
    def method(self) -> str:
        return self.records[0].summary["method"]

    @property
    def total_evaluations(self) -> float:
        return self.training_evaluations + self.teacher_evaluations


@dataclass(frozen=True)
class Comparison:
    """What one `bench compare` left, with the runs that lie beside it."""

    path: Path
    backbone: str
    tasks: tuple[str, ...]
    budget: int
    """Training evaluations of each run."""
    lines: list[Line]

    @property
    def title(self) -> str:
        return f"{self.path.name}: backbone {self.backbone}, {self.budget:,} training evaluations"


def comparison(path: Path) -> Comparison:
    """Read a comparison-*.json and the finished runs in its folder.

    Raises UsageError for a file that is no such record, MissingError if none of its runs is there.
    """
    try:
        found = json.loads(path.read_text())
        lines = [
            Line(
                line["label"],
                records(path.parent, line["runs"]),
                line["training_evaluations"],
                line["teacher_evaluations"],
            )
            for line in found["lines"]
        ]
        budget = found["budget"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a record of bench compare: {one_line(error)}") from error
    lines = [line for line in lines if line.records]
    if not lines:
        raise MissingError(f"no finished run of {path} lies beside it")
    first = lines[0].records[0]
    return Comparison(path, first.spec["backbone"], tuple(first.summary["models"]["student"]), budget, lines)


def records(root: Path, folders: list[str]) -> list[Record]:
    """Records of finished runs in a results folder."""
    found = []
    for name in folders:
        folder = root / name
        if (folder / "summary.json").is_file():
            summary, spec = (json.loads((folder / f"{part}.json").read_text()) for part in ("summary", "spec"))
            evaluations, probes = (_rows(folder / f"{part}.jsonl") for part in ("evaluations", "probes"))
            found.append(Record(summary, evaluations, spec["spec"], probes))
    return found


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
