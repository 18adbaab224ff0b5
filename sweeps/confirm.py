"""The confirmation of a study: its best settings again, with seeds that no trial has had.

The value of the best of many trials is biased upwards. What a study chooses is therefore the setting with the best mean
over the seeds of its trial and of its confirmation, all on validation prompts.
"""

import time

import optuna

from bench.analysis.records import score
from bench.config.resolve import describe
from bench.errors import BusyError, one_line
from bench.store.run import Run
from bench.training.execute import Session, execute
from sweeps.measure import BUSY_S
from sweeps.storage import Place, make_folder, storage_errors
from sweeps.study import StudySpec, candidates
from sweeps.worker import Say, brief, complete, end, settings_may_cause


def confirm(spec: StudySpec, study: optuna.Study, place: Place, say: Say = lambda _: None) -> None:
    """Make the runs that confirm the best trials, together with other workers: each makes those nobody is making.

    Does nothing before all trials have finished. A run that fails by its settings leaves its setting without a value;
    other errors are raised as in `worker.work`, and rerunning the command resumes.
    """
    if spec.confirm is None or not complete(spec, study, place):
        return
    with storage_errors(place):
        chosen = candidates(spec, study.get_trials(deepcopy=False))
    left = [(trial, run) for trial in chosen for run in spec.confirming(trial)]
    make_folder(place.runs)
    while left:
        busy = []
        for trial, run in left:
            label = f"trial {trial.number}, seed {run.seed}"
            try:
                summary = execute(run, Session(place.runs))
            except BusyError:
                busy.append((trial, run))
                continue
            except Exception as error:
                if not settings_may_cause(error):
                    end(error)
                say(f"{label} failed: {one_line(error)}")
                continue
            scores = [score(row) for row in summary["models"]["student"].values()]
            say(f"{label}: {sum(scores) / len(scores):.4f}: {brief(trial.user_attrs['settings'])}")
        left = busy
        if left:
            time.sleep(BUSY_S)


def confirmed(spec: StudySpec, study: optuna.Study, place: Place) -> list[dict]:
    """The confirmed settings in JSON form, best mean over all seeds first; those with a missing run last, without one.

    Empty before all trials have finished. Raises DamagedError for a run whose summary is not valid.
    """
    if spec.confirm is None or not complete(spec, study, place):
        return []
    fingerprint = describe(spec.backbone).fingerprint()
    rows = []
    for trial in candidates(spec, study.get_trials(deepcopy=False)):
        scores = {task: [*values] for task, values in trial.user_attrs["scores"].items()}
        names = [*trial.user_attrs["runs"]]
        for run in spec.confirming(trial):
            made = Run(place.runs, run, fingerprint)
            summary = made.summary
            if summary is None:
                scores = {}
                break
            names.append(made.folder.name)
            for task, row in summary["models"]["student"].items():
                scores[task].append(score(row))
        value = spec.values(scores)[0] if scores else None
        settings = trial.user_attrs["settings"]
        rows.append({"trial": trial.number, "value": value, "settings": settings, "scores": scores, "runs": names})
    return sorted(rows, key=lambda row: (row["value"] is None, -(row["value"] or 0.0), row["trial"]))
