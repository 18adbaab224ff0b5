"""Carries out a trial: one run per seed, as ordinary runs in the study's folder, which resume from checkpoints."""

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
"""Pause before trying a run again that another worker has claimed."""
Reached = Callable[[int, float], bool]
"""(index of an evaluation point, mean held-out score there) -> whether to prune the trial."""


class PrunedError(Stopped):
    """The pruner stopped the trial because of its scores so far."""


@dataclass(frozen=True)
class Measured:
    """The results of a trial."""

    scores: dict[str, list[float]]
    """task -> held-out scores, one per seed."""
    runs: list[str]
    """Folder names of the runs, one per seed."""


def measure(spec: StudySpec, place: Place, chosen: dict[str, Scalar], reached: Reached) -> Measured:
    """Run every seed of a trial. Raises PrunedError if `reached` stops it, which the first seed alone decides."""
    fingerprint = describe(spec.backbone).fingerprint()
    scores: dict[str, list[float]] = {task: [] for task in spec.task_list}
    runs = []
    for index, seed in enumerate(spec.seed_list):
        run = spec.run(chosen, seed)

        def listen(label: str, progress: Progress, first: bool = index == 0) -> None:
            # Missing teachers are trained on the way and report progress too, under their own method's name.
            own = label.startswith(f"{spec.method} ")
            if not (first and own and progress.scores):
                return
            mean = sum(progress.scores.values()) / len(progress.scores)
            # Evaluations come slightly after their point; the margin is for rounding of the points to four digits.
            point = int(progress.fraction * spec.points + 1e-3) - 1
            if reached(point, mean) and progress.fraction < 1:
                raise PrunedError

        make_folder(place.runs)
        session = Session(place.runs, listen=listen)
        summary = _when_free(run, session)
        runs.append(Run(place.runs, run, fingerprint).folder.name)
        student = summary["models"]["student"]
        for task, row in student.items():
            scores[task].append(score(row))
    return Measured(scores, runs)


def _when_free(run: Spec, session: Session) -> dict:
    """Execute a run, waiting while another worker executes it or its teacher: equal settings share one run."""
    while True:
        try:
            return execute(run, session)
        except BusyError:
            time.sleep(BUSY_S)
