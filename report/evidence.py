"""The evidence of a report: runs, probes, studies and comparisons at the given paths, and problems with them."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.analysis.metric_names import is_along, is_final
from bench.analysis.records import Record
from bench.errors import DamagedError, UsageError, one_line
from bench.store.damage import check_checkpoint
from bench.store.names import recorded_failure
from bench.store.points import with_nfe
from bench.system.files import read_text
from report.checks import COMPARED, EXCESS, KEPT, POINTS, PROBES, PULLS, STARTS, STUDY, SUMMARY, all_printable, checked
from report.parallel import cores_for, forked

EMPTY = "contains no run, comparison or study"
FEW = 100
"""Number of runs for which another process is worth its start."""
UNREADABLE = (OSError, ValueError, KeyError, TypeError, DamagedError)
DIGITS = 308
"""Longest integer that certainly fits into a float."""


@dataclass(frozen=True)
class FoundRun:
    """One run folder."""

    folder: Path
    spec: dict
    weights: str
    """Hash of the backbone's weights."""
    state: str
    """done, failed or unfinished."""
    note: str = ""
    """The error of a failed run."""
    record: Record | None = None
    """The record of a finished run, reduced to headlines and the metrics next to them, as arrays."""
    commit: str = ""
    device: str = ""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.folder.name

    @property
    def result(self) -> Record:
        """The record of a finished run."""
        assert self.record is not None, f"{self.name} is not finished"
        return self.record

    @property
    def spent(self) -> float:
        """Training NFE of a finished run."""
        return self.result.summary["cost"]["evaluations"].get("training", 0)


@dataclass
class Evidence:
    """Everything found at the given paths."""

    runs: list[FoundRun] = field(default_factory=list)
    probes: list[tuple[Path, list[dict]]] = field(default_factory=list)
    excess: list[tuple[Path, list[dict]]] = field(default_factory=list)
    """Measured against predicted variance (methods/opd_ppo_excess.py)."""
    studies: list[tuple[Path, dict]] = field(default_factory=list)
    labels: dict[str, set[str]] = field(default_factory=dict)
    """Run folder's name -> labels of its line in comparisons."""
    teacher_costs: dict[str, float] = field(default_factory=dict)
    """Run folder's name -> cost of its teachers according to a comparison."""
    problems: list[str] = field(default_factory=list)
    """Files that could not be read, and folders with nothing to read."""

    def __bool__(self) -> bool:
        """Whether there is anything to report on."""
        return bool(self.runs or self.probes or self.excess or self.studies)

    @property
    def unread(self) -> list[str]:
        """Problems other than empty folders."""
        return [problem for problem in self.problems if not problem.endswith(EMPTY)]

    def unfinished(self) -> list[str]:
        """The state of every run without a result, in words."""
        said = {"failed": "failed: ", "unfinished": "is not finished"}
        return [f"{run.name} {said[run.state]}{run.note}" for run in self.runs if not run.record]


def collect(paths: list[Path]) -> Evidence:
    """Read run folders, results folders, comparison-*.json, outputs of probes and study folders.

    Raises UsageError for a missing path, and for an unreadable file or study that was given by name. Damaged files
    inside a folder are listed in `problems` instead.
    """
    evidence = Evidence()
    reader = _Reader()
    for path in paths:
        try:
            _path(path, evidence, reader)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {one_line(error)}") from error
    return evidence


def _path(path: Path, evidence: Evidence, reader: "_Reader") -> None:
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_file():
        _file(path, evidence, reader)
    elif not path.is_dir():
        # Reading a pipe would block, and a device never ends.
        raise UsageError(f"{path} is neither a folder nor a record")
    elif _is_run(path):
        _run(path, evidence, reader)
    elif _is_study(path):
        try:
            _study(path, evidence)
        except (OSError, ValueError) as error:
            raise UsageError(f"the study {path} cannot be read: {one_line(error)}") from error
    else:
        _folder(path, evidence, reader)


def _folder(path: Path, evidence: Evidence, reader: "_Reader") -> None:
    comparisons = sorted(path.glob("comparison-*.json"))
    specs = sorted(path.glob("*/spec.json"))
    studies, closed = [], []
    for folder in sorted(path.iterdir()):
        try:
            studies += [folder] if folder.is_dir() and _is_study(folder) else []
        except OSError as error:  # a folder of another user, without permission
            closed.append(f"{folder.name}: cannot be read ({one_line(error)})")
    evidence.problems += closed
    if not (comparisons or specs or studies or closed):
        evidence.problems.append(f"{path}: {EMPTY}")
    for comparison in comparisons:
        try:
            _labels(_json(comparison), evidence)
        except (OSError, ValueError) as error:
            evidence.problems.append(f"{comparison.name}: damaged ({one_line(error)})")
    reader.read_ahead([spec.parent for spec in specs])
    for spec in specs:
        _run(spec.parent, evidence, reader)
    for started in sorted(path.glob("*/provenance.jsonl")):
        if not _is_run(started.parent):
            evidence.problems.append(f"{started.parent.name}: damaged (spec.json is missing)")
    for study in studies:
        try:
            _study(study, evidence)
        except (OSError, ValueError) as error:
            evidence.problems.append(f"study {study.name}: damaged ({one_line(error)})")


def _is_study(folder: Path) -> bool:
    # A run whose spec.json was lost also has a summary.json; its provenance.jsonl gives it away.
    started_run = _is_run(folder) or (folder / "provenance.jsonl").is_file()
    ended = (folder / "summary.json").is_file() and not started_run
    return (folder / "journal.log").is_file() or ended


def _is_run(folder: Path) -> bool:
    return (folder / "spec.json").is_file()


def _file(path: Path, evidence: Evidence, reader: "_Reader") -> None:
    try:
        content = _json(path)
        listed = isinstance(content, list)
        # Both kinds of output are lists; only entries of methods.opd_ppo_excess have a ratio.
        first = content[0] if listed and content else None
        if isinstance(first, dict) and "ratio" in first:
            evidence.excess.append((path, all_printable(checked(EXCESS, content))))
            return
        if listed:
            evidence.probes.append((path, all_printable(checked(PROBES, content))))
            return
        folders = _labels(content, evidence)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is neither a comparison nor an output of bench probe: {one_line(error)}") from error
    for name in folders:
        try:
            # A name with a slash could lead out of the comparison's folder.
            beside = "/" not in name and _is_run(path.parent / name)
        except OSError as error:
            evidence.problems.append(f"{name}: listed in {path.name}, but cannot be read ({one_line(error)})")
            continue
        if beside:
            _run(path.parent / name, evidence, reader)
        else:
            evidence.problems.append(f"{name}: listed in {path.name}, but not found next to it")


def _labels(content: dict, evidence: Evidence) -> list[str]:
    """Add a comparison's labels and costs to the evidence; return the names of all its runs."""
    lines = checked(COMPARED, content)["lines"]
    for line in lines:
        for name in line["runs"]:
            evidence.labels.setdefault(name, set()).add(line["label"])
            # False for NaN, which stands for an unknown cost.
            if line["teacher_evaluations"] >= 0:
                evidence.teacher_costs[name] = line["teacher_evaluations"]
    return [name for line in lines for name in line["runs"]] + content.get("lines_without_result", [])


def _study(path: Path, evidence: Evidence) -> None:
    summary = path / "summary.json"
    if summary.is_file():
        evidence.studies.append((path, all_printable(checked(STUDY, _json(summary)))))
    else:
        evidence.problems.append(f"study {path.name}: not finished; bench sweep resumes it")


def _run(folder: Path, evidence: Evidence, reader: "_Reader") -> None:
    # A run may be given twice: by its folder, and by a comparison that lists it or a link to it.
    place = folder.resolve()
    if place in reader.seen:
        return
    reader.seen.add(place)
    try:
        evidence.runs.append(reader.read(folder))
    except UNREADABLE as error:
        evidence.problems.append(f"{folder.name}: damaged ({one_line(error)})")


def _read_all(folders: list[Path]) -> list[FoundRun | str]:
    """The runs of many folders, or why one cannot be read. In one list, because equal arrays are pickled once."""
    reader = _Reader()
    found: list[FoundRun | str] = []
    for folder in folders:
        try:
            found.append(reader.read(folder))
        except UNREADABLE as error:
            found.append(one_line(error))
    return found


class _Reader:
    """Reads runs, and keeps equal arrays (scores of base and teachers, strata) only once."""

    def __init__(self) -> None:
        self.seen: set[Path] = set()
        self._arrays: dict[bytes, np.ndarray] = {}
        self._ahead: dict[Path, FoundRun | str] = {}

    def read_ahead(self, folders: list[Path]) -> None:
        """Read many folders in parallel, for `read`, which reads those that are left out here."""
        new = [folder for folder in folders if folder.resolve() not in self.seen]
        cores = cores_for(len(new) // FEW)
        if cores > 1:
            shares = [new[core::cores] for core in range(cores)]
            for share, found in zip(shares, forked(_read_all, shares, cores)):
                self._ahead |= dict(zip(share, found))

    def read(self, folder: Path) -> FoundRun:
        """Read one run folder. Raises OSError, ValueError, KeyError, TypeError or DamagedError if it is damaged."""
        if (ahead := self._ahead.pop(folder, None)) is None:
            return self._read(folder)
        if isinstance(ahead, str):
            raise ValueError(ahead)
        return ahead

    def _read(self, folder: Path) -> FoundRun:
        kept = _of(folder / "spec.json", KEPT, _json)
        spec, weights = kept["spec"], kept["backbone_hash"]
        starts = _of(folder / "provenance.jsonl", STARTS, _lines)
        last = starts[-1] if starts else {}
        commit = (last.get("commit") or "")[:10]
        device = last.get("device") or ""
        if not (folder / "summary.json").is_file():
            error = recorded_failure(folder)
            check_checkpoint(folder)
            state = "failed" if error else "unfinished"
            return FoundRun(folder, spec, weights, state, str(error or ""), commit=commit, device=device)
        summary = _of(folder / "summary.json", SUMMARY, _json)
        points = _of(folder / "evaluations.jsonl", POINTS, _lines)
        if summary["models"]["student"].keys() != set(spec["tasks"]):
            raise ValueError("its summary has other tasks than its spec")
        shown = summary["models"]["student"]
        # Before the rows are reduced to arrays, which cannot be compared with a plain !=.
        if not all(_agrees(row, shown) for row in points):
            raise ValueError("its evaluations have other tasks, prompts or headlines than its summary")
        for models in [*summary["models"].values(), *summary.get("along", {}).values()]:
            for task, row in models.items():
                models[task] = self._compact(row, is_final)
        evaluations = [self._compact(row, is_along) for row in with_nfe(points, folder)]
        pulls = _of(folder / "probes.jsonl", PULLS, _lines)
        record = Record(summary, evaluations, spec, pulls)
        return FoundRun(folder, spec, weights, "done", "", record, commit, device)

    def _compact(self, row: dict, is_shown: Callable[[str], bool]) -> dict:
        # A results folder has millions of values; the report needs the headline and the metrics shown next to it.
        rows = {}
        for name, given in row["rows"].items():
            if name == row["headline"] or is_shown(name):
                rows[name] = self._once(np.array(given, np.float64))
        compact = row | {"rows": rows, "strata": self._once(np.array(row["strata"]))}
        if row.get("prompts") is not None:
            compact["prompts"] = self._once(np.array(row["prompts"]))
        return compact

    def _once(self, array: np.ndarray) -> np.ndarray:
        # The type is part of the key: zeros as integers and as floats have the same bytes.
        key = array.dtype.str.encode() + array.tobytes()
        return self._arrays.setdefault(key, array)


def _agrees(row: dict, shown: dict) -> bool:
    """Whether an evaluation has a task of the summary with the same headline, strata and prompts."""
    if row["task"] not in shown:
        return False
    own = shown[row["task"]]
    return all(row.get(key) == own.get(key) for key in ("headline", "strata", "prompts"))


def _of(path: Path, schema, read: Callable):
    """The checked content of a file; errors name the file."""
    try:
        return checked(schema, read(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name}: {one_line(error)}") from error


def _json(path: Path):
    """Parse a JSON file. Raises OSError or ValueError."""
    return _loads(_text(path))


def _lines(path: Path) -> list:
    """Rows of a log without an incomplete last line, which is still being written."""
    text = _text(path) if path.exists() else ""
    return [_loads(line) for line in text.split("\n")[:-1]]


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except DamagedError as error:
        raise ValueError(f"it {str(error).removeprefix(f'{path} ')}") from error


def _loads(text: str):
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg}, character {error.pos}") from error


def _whole(digits: str) -> int:
    if len(digits) > DIGITS and math.isinf(float(digits)):
        raise ValueError("it contains a number that is too large")
    return int(digits)
