"""Carry out a trial: one run a seed, ordinary runs in the study's folder, resumed where an earlier try left them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from bench.analysis.records import score
from bench.config.resolve import describe
from bench.config.spec import Spec
from bench.errors import BusyError, Stopped
from bench.store.run import Run
from bench.training.execute import Session, execute
from bench.training.loop import Progress
from sweeps.storage import Place, make_folder
from sweeps.study import Scalar, StudySpec

BUSY_S = 2.0
Reached = Callable[[int, float], bool]
"""(point of the anytime curve, mean score there) -> whether to stop."""


class PrunedError(Stopped):
    """The trial does badly along its course."""


@dataclass(frozen=True)
class Measured:
    """What a trial's runs gave."""

    scores: dict[str, list[float]]
    """task -> held-out score of every seed."""
    runs: list[str]


def measure(spec: StudySpec, place: Place, chosen: dict[str, Scalar], reached: Reached) -> Measured:
    """Run every seed of a trial; the first one's course is what may end it early. Raises PrunedError then."""
    fingerprint = describe(spec.backbone).fingerprint()
    scores: dict[str, list[float]] = {task: [] for task in spec.task_list}
    runs = []
    for index, seed in enumerate(spec.seed_list):
        run = spec.run(chosen, seed)

        def listen(label: str, progress: Progress, first: bool = index == 0) -> None:
            if first and progress.scores and label.startswith(f"{spec.method} "):  # not a teacher's on the way
                mean = sum(progress.scores.values()) / len(progress.scores)
                point = int(progress.fraction * spec.points + 1e-3) - 1
                if reached(point, mean) and progress.fraction < 1:
                    raise PrunedError

        make_folder(place.runs)
        summary = _when_free(run, Session(place.runs, listen=listen))
        runs.append(Run(place.runs, run, fingerprint).folder.name)
        for task, row in summary["models"]["student"].items():
            scores[task].append(score(row))
    return Measured(scores, runs)


def _when_free(run: Spec, session: Session) -> dict:
    """Execute a run; while another worker has it, or its teacher, in hand, wait: equal settings are one run."""
    while True:
        try:
            return execute(run, session)
        except BusyError:
            time.sleep(BUSY_S)
