"""The results of a study: best settings or Pareto front, importances, and the command that repeats the best run."""

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
from bench.cli.forecast import seeds_text
from bench.errors import BenchError, DamagedError, explained, one_line
from bench.printing import terminal
from bench.store.shapes import check_summary
from bench.system.files import json_bytes, read_record, write_atomic
from sweeps.confirm import confirmed
from sweeps.storage import Place, storage_errors
from sweeps.study import MEAN, Scalar, StudySpec, check_trials, shown
from sweeps.worker import brief

SHOWN = 5
"""Number of best trials in the table."""


def summarise(spec: StudySpec, study: optuna.Study, place: Place) -> dict:
    """The results of a study so far, in JSON form. Raises StorageError if its storage fails or a trial is damaged."""
    with storage_errors(place):
        check_trials(spec, study, place)
        return _summary(spec, study, place)


def store(summary: dict, place: Place) -> None:
    """Write summary.json in the study's folder. Raises BenchError if it cannot be written."""
    try:
        write_atomic(place.folder / "summary.json", json_bytes(summary))
    except OSError as error:
        raise BenchError(f"the result could not be stored in {explained(error)}") from error


def _summary(spec: StudySpec, study: optuna.Study, place: Place) -> dict:
    """The results; errors of the storage are raised as they are."""
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
            {
                "trial": trial.number,
                "values": trial.values,
                "settings": trial.user_attrs["settings"],
            }
            for trial in complete
        ],
        "first": _as_json(complete[0]) if complete else None,
        "best": [_as_json(trial) for trial in best(spec, study, complete)],
        "importances": importances(spec, study, complete),
    }
    if complete:
        leader = best(spec, study, complete)[0]
        summary["best_minus_first"] = _difference(spec, place, leader, complete[0])
        summary["confirmed"] = _confirmed(spec, study, place)
        again = _whole(summary["confirmed"])
        further = spec.further_seeds if again else []
        chosen = again[0] if again else summary["best"][0]
        summary["chosen"] = {"trial": chosen["trial"], "settings": chosen["settings"]}
        summary["command"] = command(spec, chosen["settings"], [*spec.seed_list, *further])
    return summary


def best(spec: StudySpec, study: optuna.Study, complete: list[FrozenTrial]) -> list[FrozenTrial]:
    """The best SHOWN trials, best first; with several objectives the Pareto front, highest mean first."""
    if spec.objective == MEAN:
        return sorted(complete, key=lambda trial: -trial.values[0])[:SHOWN]
    front = study.best_trials if complete else []
    return sorted(front, key=lambda trial: -float(np.mean(trial.values)))


def _as_json(trial: FrozenTrial) -> dict:
    """A complete trial's results."""
    stored = trial.user_attrs
    return {
        "trial": trial.number,
        "values": trial.values,
        "settings": stored["settings"],
        "scores": stored["scores"],
        "runs": stored["runs"],
    }


def importances(spec: StudySpec, study: optuna.Study, complete: list[FrozenTrial]) -> dict[str, float]:
    """setting -> its share of the variance of the mean score, by Optuna; empty if there are too few trials to tell."""

    def mean(trial: FrozenTrial) -> float:
        return float(np.mean(trial.values))

    distinct = {mean(trial) for trial in complete}
    if len(complete) < 4 or len(distinct) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(study, target=mean)
        except (ValueError, RuntimeError):  # raised if no setting took two values
            return {}
    return {name: float(value) for name, value in found.items()}


def _difference(spec: StudySpec, place: Place, leader: FrozenTrial, first: FrozenTrial) -> dict | None:
    """Mean score of the best trial minus that of the first, paired by seed and prompt, with its interval.

    None if a run has been deleted, or is damaged, in which case a message is printed: the trials' scores are in the
    storage and do not depend on the runs.
    """
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


def _confirmed(spec: StudySpec, study: optuna.Study, place: Place) -> list[dict]:
    """The confirmed settings; empty if a run is damaged, in which case a message is printed."""
    try:
        return confirmed(spec, study, place)
    except (DamagedError, OSError) as error:
        print(f"no confirmation: {one_line(error)}", file=sys.stderr)
        return []


def _record(spec: StudySpec, path: Path) -> Record:
    """A run's summary. Raises DamagedError if it is not valid."""
    summary = read_record(path)
    check_summary(path, summary, spec.task_list)
    return Record(summary, [], {})


def command(spec: StudySpec, settings: dict[str, Scalar], seeds: list[int]) -> str:
    """The `bench run` command that repeats the runs with these settings and seeds."""
    tasks = ",".join(spec.task_list)
    words = ["bench", "run", "--method", spec.method, "--tasks", tasks]
    words += ["--backbone", spec.backbone, "--seeds", ",".join(map(str, seeds))]
    for text in spec.overrides(settings):
        words += ["--set", text]
    return shlex.join(words)


def show(spec: StudySpec, summary: dict, place: Place) -> None:
    """Print the summary as a table with comments."""
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
        values = [f"{value:.4f}" for value in row["values"]]
        table.add_row(str(row["trial"]), *values, brief(row["settings"]))
    console.print(table)
    if gap := summary.get("best_minus_first"):
        interval = f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
        console.print(
            f"best minus trial {summary['first']['trial']}: {interval}, "
            "paired by prompt; the best of many is optimistically biased: confirm it on other seeds and test prompts"
        )
    if rows := summary.get("confirmed", []):
        seeds = seeds_text([*spec.seed_list, *spec.further_seeds])
        verdict = "the first is chosen" if _whole(rows) else "a run of each is missing, so none is confirmed"
        console.print(f"the best {len(rows)} with {seeds}; {verdict}:")
        console.print(_again(rows))
    if summary["importances"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in summary["importances"].items())
        console.print(f"importance: {shares}")
    if "command" in summary:
        word = "chosen" if _whole(rows) else "best"
        console.print(f"to repeat the {word} trial:\n{summary['command']}", soft_wrap=True)
        settings = " ".join(shown(summary["chosen"]["settings"]))
        console.print(f"as --set values: {settings}", soft_wrap=True)
    console.print(f"study folder: {place.folder}", soft_wrap=True)


def _whole(rows: list[dict]) -> list[dict]:
    """The confirmed settings of which no run is missing."""
    return [row for row in rows if row["value"] is not None]


def _again(rows: list[dict]) -> Table:
    """The confirmed settings, the chosen one first."""
    table = Table()
    for head in ("trial", "mean of all seeds", "settings"):
        table.add_column(head, overflow="fold")
    for row in rows:
        value = "a run is missing" if row["value"] is None else f"{row['value']:.4f}"
        table.add_row(str(row["trial"]), value, brief(row["settings"]))
    return table
