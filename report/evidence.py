"""What a report is made of: runs, probes, studies and comparisons at the given paths, and what is wrong with them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.errors import UsageError, one_line
from bench.outcome import recorded_failure
from bench.probes.overoptimisation import GOLD
from bench.records import Record


@dataclass(frozen=True)
class Found:
    """One run folder."""

    folder: Path
    spec: dict
    state: str
    """done, failed or unfinished."""
    note: str = ""
    """The error of a failed one."""
    record: Record | None = None
    """Of a finished one; only headline and gold rows are kept, as arrays."""
    commit: str = ""
    device: str = ""

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass
class Evidence:
    """All that was found."""

    runs: list[Found] = field(default_factory=list)
    probes: list[tuple[Path, list[dict]]] = field(default_factory=list)
    excess: list[tuple[Path, list[dict]]] = field(default_factory=list)
    """Measured against predicted variance (methods/opd_ppo_excess.py)."""
    studies: list[tuple[Path, dict]] = field(default_factory=list)
    labels: dict[str, set[str]] = field(default_factory=dict)
    """Run folder's name -> its line's labels in comparisons."""
    teacher_costs: dict[str, float] = field(default_factory=dict)
    """Run folder's name -> what its teachers cost, by a comparison."""
    problems: list[str] = field(default_factory=list)
    """Files that could not be read."""


def collect(paths: list[Path]) -> Evidence:
    """Read run folders, results folders, comparison-*.json, outputs of bench probe and study folders.

    Raises UsageError for a path that is none of these. A damaged run among others is named, not fatal.
    """
    evidence = Evidence()
    reader = _Reader()
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} is not there")
        if path.is_file():
            _file(path, evidence, reader)
        elif (path / "spec.json").is_file():
            _run(path, evidence, reader)
        elif (path / "journal.log").is_file() or (path / "summary.json").is_file():
            _study(path, evidence)
        else:
            for comparison in sorted(path.glob("comparison-*.json")):
                _labels(comparison, evidence)
            for spec in sorted(path.glob("*/spec.json")):
                _run(spec.parent, evidence, reader)
            for study in sorted(path.glob("*/journal.log")):
                _study(study.parent, evidence)
    return evidence


def _file(path: Path, evidence: Evidence, reader: "_Reader") -> None:
    try:
        content = json.loads(path.read_text())
        if isinstance(content, list) and "ratio" in content[0]:
            _ = [(row["task"], row["kernel"], row["eta"], row["by_sigma"]) for row in content]
            evidence.excess.append((path, content))
            return
        if isinstance(content, list):
            _ = [(row["method"], row["all"]["snr"], row["sampler"], row["interference"]) for row in content]
            evidence.probes.append((path, content))
            return
        folders = [name for line in content["lines"] for name in line["runs"]]
        folders += content.get("lines_without_result", [])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{path} is neither a comparison nor a probe's output: {one_line(error)}") from error
    _labels(path, evidence)
    for name in folders:
        if "/" not in name and (path.parent / name / "spec.json").is_file():
            _run(path.parent / name, evidence, reader)
        else:
            evidence.problems.append(f"{name}: named by {path.name}, but it is not beside it")


def _labels(path: Path, evidence: Evidence) -> None:
    try:
        for line in json.loads(path.read_text())["lines"]:
            for name in line["runs"]:
                evidence.labels.setdefault(name, set()).add(line["label"])
                evidence.teacher_costs[name] = line["teacher_evaluations"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        evidence.problems.append(f"{path}: not a record of bench compare ({one_line(error)})")


def _study(path: Path, evidence: Evidence) -> None:
    summary = path / "summary.json"
    if not summary.is_file():
        evidence.problems.append(f"study {path.name}: not finished; bench sweep goes on with it")
        return
    try:
        content = json.loads(summary.read_text())
        _ = [content[key] for key in ("study", "objectives", "best", "complete", "settings", "importances", "trials")]
        evidence.studies.append((path, content))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is neither a run, nor a results folder, nor a study: {one_line(error)}") from error


def _run(folder: Path, evidence: Evidence, reader: "_Reader") -> None:
    if (place := folder.resolve()) in reader.seen:
        return
    reader.seen.add(place)
    try:
        evidence.runs.append(reader.read(folder))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        evidence.problems.append(f"{folder.name}: damaged ({one_line(error)})")


class _Reader:
    """Reads runs; equal arrays (the base's and teachers' scores, strata) are kept once for all of them."""

    def __init__(self) -> None:
        self.seen: set[Path] = set()
        self._arrays: dict[bytes, np.ndarray] = {}

    def read(self, folder: Path) -> Found:
        spec = json.loads((folder / "spec.json").read_text())["spec"]
        starts = _lines(folder / "provenance.jsonl")
        made = {"commit": starts[-1].get("commit", "")[:10], "device": starts[-1].get("device", "")} if starts else {}
        if not (folder / "summary.json").is_file():
            error = recorded_failure(folder)
            return Found(folder, spec, "failed" if error else "unfinished", error or "", **made)
        summary = json.loads((folder / "summary.json").read_text())
        for models in summary["models"].values():
            for task, row in models.items():
                models[task] = self._compact(row)
        evaluations = [self._compact(row) for row in _lines(folder / "evaluations.jsonl")]
        record = Record(summary, evaluations, spec, _lines(folder / "probes.jsonl"))
        return Found(folder, spec, "done", "", record, **made)

    def _compact(self, row: dict) -> dict:
        kept = {name: row["rows"][name] for name in {row["headline"], GOLD} & row["rows"].keys()}
        rows = {name: self._once(np.array(values, np.float64)) for name, values in kept.items()}
        return row | {"rows": rows, "strata": self._once(np.array(row["strata"]))}

    def _once(self, array: np.ndarray) -> np.ndarray:
        return self._arrays.setdefault(array.dtype.str.encode() + array.tobytes(), array)


def _lines(path: Path) -> list[dict]:
    """Rows of a log; a last line that is still being written is left out."""
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]
