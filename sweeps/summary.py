"""What a study found: best settings or Pareto front, importances, and the command of the best run."""

import shlex
import sys
import warnings
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from bench.analysis.comparison import against
from bench.analysis.records import Record
from bench.errors import BenchError, DamagedError, explained, one_line
from bench.printing import terminal
from bench.store.shapes import check_summary
from bench.system.files import json_bytes, read_record, write_atomic
from sweeps.storage import Place, storage_errors
from sweeps.study import MEAN, StudySpec, check_trials, shown
from sweeps.worker import brief

SHOWN = 5


def summarise(spec: StudySpec, study: optuna.Study, place: Place) -> dict:
    """What is known of a study, finished or half-done. Raises StorageError."""
    with storage_errors(place):
        check_trials(spec, study, place)
        return _summary(spec, study, place)


def store(summary: dict, place: Place) -> None:
    """summary.json in the study's folder. Raises BenchError where it cannot be written."""
    try:
        write_atomic(place.folder / "summary.json", json_bytes(summary))
    except OSError as error:
        raise BenchError(f"the result could not be stored in {explained(error)}") from error


def _summary(spec: StudySpec, study: optuna.Study, place: Place) -> dict:
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    counts = {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}
    summary: dict = {
        "study": spec.name,
        "objectives": [MEAN] if spec.objective == MEAN else list(spec.objective),
        "split": "validation",
        "budget": spec.budget,
        "seeds": spec.seed_list,
        "trials": counts,
        "settings": {name: "choices" if axis.choices else "range" for name, axis in spec.space.items()},
        "complete": [
            {"trial": trial.number, "values": trial.values, "settings": trial.user_attrs["settings"]}
            for trial in complete
        ],
        "first": _as_json(spec, complete[0]) if complete else None,
        "best": [_as_json(spec, trial) for trial in best(spec, study, complete)],
        "importances": importances(spec, study, complete),
    }
    if complete:
        leader = best(spec, study, complete)[0]
        summary["best_minus_first"] = _difference(spec, place, leader, complete[0])
        summary["command"] = command(spec, leader)
    return summary


def best(spec: StudySpec, study: optuna.Study, complete: list[FrozenTrial]) -> list[FrozenTrial]:
    """One objective: the best trials, best first. Several: the Pareto front, highest mean first."""
    if spec.objective == MEAN:
        return sorted(complete, key=lambda trial: -trial.values[0])[:SHOWN]
    front = study.best_trials if complete else []
    return sorted(front, key=lambda trial: -float(np.mean(trial.values)))


def _as_json(spec: StudySpec, trial: FrozenTrial) -> dict:
    settings = trial.user_attrs["settings"]
    scores = trial.user_attrs["scores"]
    return {"trial": trial.number, "values": trial.values, "settings": settings, "scores": scores,
            "runs": trial.user_attrs["runs"]}  # fmt: skip


def importances(spec: StudySpec, study: optuna.Study, complete: list[FrozenTrial]) -> dict[str, float]:
    """Optuna's share of each setting in the spread of the mean score; empty where there is too little to tell."""
    if len(complete) < 4 or len({float(np.mean(trial.values)) for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(study, target=lambda trial: float(np.mean(trial.values)))
        except (ValueError, RuntimeError):  # no setting took two values
            return {}
    return {name: float(value) for name, value in found.items()}


def _difference(spec: StudySpec, place: Place, leader: FrozenTrial, first: FrozenTrial) -> dict | None:
    """Mean score of the best trial minus the first one's, paired by seed and prompt. None where a run is gone, or is
    damaged, which is said: the trials' scores are there without it."""
    records = []
    for trial in (leader, first):
        paths = [place.runs / name / "summary.json" for name in trial.user_attrs["runs"]]
        if not all(path.is_file() for path in paths):
            return None
        try:
            records.append([_record(spec, path) for path in paths])
        except (DamagedError, OSError) as error:
            print(f"no difference between the best and the first trial: {one_line(error)}", file=sys.stderr)
            return None
    found = against(records[0], records[1], tuple(spec.task_list))
    return {"value": found.value, "low": found.low, "high": found.high}


def _record(spec: StudySpec, path: Path) -> Record:
    summary = read_record(path)
    check_summary(path, summary, spec.task_list)
    return Record(summary, [], {})


def command(spec: StudySpec, trial: FrozenTrial) -> str:
    """The `bench run` that makes a trial's runs again."""
    sets = [part for text in spec.overrides(trial.user_attrs["settings"]) for part in ("--set", text)]
    words = ["bench", "run", "--method", spec.method, "--tasks", ",".join(spec.task_list), "--backbone", spec.backbone]
    return shlex.join([*words, "--seeds", ",".join(map(str, spec.seed_list)), *sets])


def show(spec: StudySpec, summary: dict, place: Place) -> None:
    """The summary as people read it, to stdout."""
    console = terminal(110)
    counts = ", ".join(f"{n} {state}" for state, n in summary["trials"].items() if n)
    front = "" if spec.objective == MEAN else ", Pareto front"
    table = Table(title=f"study {spec.name}: {counts}; validation prompts, {spec.budget:,} NFE per run{front}")
    for head in ("trial", *summary["objectives"], "settings"):
        table.add_column(head, overflow="fold")
    listed = [*summary["best"]]
    if summary["first"] and summary["first"]["trial"] not in {row["trial"] for row in listed}:
        listed.append(summary["first"])
    for row in listed:
        table.add_row(str(row["trial"]), *(f"{value:.4f}" for value in row["values"]), brief(row["settings"]))
    console.print(table)
    if gap := summary.get("best_minus_first"):
        interval = f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
        console.print(
            f"best minus trial {summary['first']['trial']}: {interval}, "
            "paired by prompt; the best of many flatters: confirm it on other seeds and test prompts"
        )
    if summary["importances"]:
        console.print("importance: " + ", ".join(f"{k} {v:.0%}" for k, v in summary["importances"].items()))
    if "command" in summary:
        console.print(f"the best trial again:\n{summary['command']}", soft_wrap=True)
        console.print(f"as --set values: {' '.join(shown(summary['best'][0]['settings']))}", soft_wrap=True)
    console.print(f"study folder: {place.folder}", soft_wrap=True)
