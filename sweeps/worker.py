"""A worker of a study: takes trials, carries them out and reports their values. Workers may join and leave anytime.

Every running trial is protected by a lock of its worker's process, which the operating system releases if the process
dies. Other workers notice this immediately and take the trial over: same number, same settings, and its runs resume
from their checkpoints. Optuna's heartbeat would need an RDB storage and start the trial again from the beginning.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from bench.errors import BenchError, BusyError, DamagedError, MissingError, UsageError, one_line
from bench.system.places import locked
from bench.training.out_of_memory import CPU_ALLOCATOR
from sweeps.journal import StorageError
from sweeps.measure import Measured, PrunedError, measure
from sweeps.storage import Place, check_storage, storage_errors
from sweeps.study import Scalar, StudySpec, open_study, sampler, trials_left

TRIES = 3
"""Number of times a trial is tried if its worker dies or runs out of memory; after that it has failed."""
ELSEWHERE = (OSError, ImportError, MissingError, DamagedError)
"""Errors that settings cannot cause: a full disk, a scorer that does not answer, a damaged checkpoint."""
MEMORY = (MemoryError, torch.OutOfMemoryError)
EXHAUSTED = (CPU_ALLOCATOR, "CUDA error")
"""Parts of RuntimeError messages after which this process may not be able to carry out another trial."""
WAIT_S = 1.0
"""Pause before looking again for a trial to take over."""
Measure = Callable[..., Measured]
Say = Callable[[str], None]


class Claims:
    """Claims on trials: a worker claims a trial by holding a lock file in the study's folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held while choosing a trial, so that two workers do not take the same one or exceed the study's number."""
        with self._held("lock", wait=True):
            yield

    def take(self, number: int) -> ExitStack | None:
        """Claim a trial until the returned lock is closed; None if a living worker holds it."""
        try:
            return self._held(f"{number}.lock", wait=False)
        except BusyError:
            return None

    def _held(self, name: str, wait: bool) -> ExitStack:
        """Take a lock. Raises BusyError if it is held and `wait` is false, UsageError if it cannot be written."""
        held = ExitStack()
        try:
            held.enter_context(locked(self.folder / name, wait))
        except OSError as error:
            cause = error.strerror or error
            raise UsageError(f"cannot write {self.folder / name}: {cause}; use another --results folder") from error
        return held


def work(spec: StudySpec, place: Place, say: Say = lambda _: None, carry_out: Measure = measure) -> optuna.Study:
    """Carry out trials until the study is complete, including those of other workers; returns the study.

    Raises BenchError if every trial failed and StorageError if the storage cannot be used or fails later. Errors that
    settings cannot cause (ELSEWHERE) and memory errors are raised too: rerunning the command resumes the study.
    """
    check_storage(place)
    claims = Claims(place.folder / "trials")
    with claims.alone():
        study = open_study(spec, place)
    while True:
        with claims.alone(), storage_errors(place):
            taken, busy = _next(spec, study, claims)
        if taken:
            trial, chosen, lock = taken
            with lock:
                _carry_out(spec, place, study, trial, chosen, say, carry_out)
        elif busy:
            time.sleep(WAIT_S)
        else:
            break
    with storage_errors(place):
        trials = study.get_trials(deepcopy=False)
    if trials and all(trial.state == TrialState.FAIL for trial in trials):
        last = trials[-1].user_attrs.get("error", "its worker died")
        raise BenchError(f"every trial failed; error of the last one: {last}")
    return study


def complete(spec: StudySpec, study: optuna.Study, place: Place) -> bool:
    """Whether the study has its number of trials and all of them have finished."""
    with storage_errors(place):
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
    finished = [state for state in states if state not in (TrialState.WAITING, TrialState.RUNNING)]
    return len(finished) >= spec.trials and TrialState.RUNNING not in states


Taken = tuple[optuna.Trial, dict[str, Scalar], ExitStack]
"""A claimed trial, its settings and its lock."""


def _next(spec: StudySpec, study: optuna.Study, claims: Claims) -> tuple[Taken | None, bool]:
    """Claim a dead worker's trial, or else a new one; also returns whether other workers are running trials.

    The caller holds `Claims.alone`.
    """
    trials = study.get_trials(deepcopy=False)
    busy = False
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        lock = claims.take(trial.number)
        if lock is None:
            busy = True
        elif study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
            lock.close()  # its worker finished it after the list of trials was read
        elif trial.user_attrs.get("tries", 1) >= TRIES:
            with lock:
                study.tell(trial.number, state=TrialState.FAIL)
        else:
            return _adopt(spec, study, trial, lock), busy
    left = trials_left(spec, trials)
    if not left:
        return None, busy
    study.sampler = sampler(spec, spec.trials - left)
    new = study.ask()  # enqueued settings first
    lock = claims.take(new.number)
    if lock is None:
        raise BenchError(
            f"trial {new.number} is new but a worker holds its lock: does another study use the same storage or folder?"
        )
    return (new, spec.suggest(new), lock), busy


def _adopt(spec: StudySpec, study: optuna.Study, frozen: FrozenTrial, lock: ExitStack) -> Taken:
    """Take over a dead worker's trial: settings drawn before it died are kept, the others are drawn now."""
    study.sampler = sampler(spec, frozen.number)
    trial = optuna.Trial(study, frozen._trial_id)  # Optuna has no public API for reopening a RUNNING trial
    tries = frozen.user_attrs.get("tries", 1)
    trial.set_user_attr("tries", tries + 1)
    return trial, spec.suggest(trial), lock


def _carry_out(
    spec: StudySpec,
    place: Place,
    study: optuna.Study,
    trial: optuna.Trial,
    chosen: dict[str, Scalar],
    say: Say,
    carry_out: Measure,
) -> None:
    """Carry out one claimed trial and store its result. Raises what the trial's settings did not cause."""

    def reached(point: int, value: float) -> bool:
        if spec.pruner == "none":
            return False
        with storage_errors(place):
            trial.report(value, point)
            return trial.should_prune()

    words = brief(chosen)
    with storage_errors(place):
        trial.set_user_attr("settings", chosen)
    try:
        found = carry_out(spec, place, chosen, reached)
        values = spec.values(found.scores)
        if not all(map(math.isfinite, values)):
            raise BenchError("its score is not finite")
    except (KeyboardInterrupt, SystemExit):  # an interrupt or a time limit does not count as a failed try
        _hand_back(trial, place)
        raise
    except StorageError:  # the trial stays RUNNING and is taken over once the storage works again
        raise
    except PrunedError:
        with storage_errors(place):
            study.tell(trial, state=TrialState.PRUNED)
        say(f"trial {trial.number} pruned: {words}")
        return
    except Exception as error:  # settings may cause any error, and the other trials continue
        # Running out of memory ends the worker, as if the system had killed it. The try counts, because the settings
        # may be what needs too much memory.
        if _is_memory(error):
            with suppress(StorageError), storage_errors(place):
                trial.set_user_attr("error", one_line(error))
            end(error)
        if not settings_may_cause(error):
            _hand_back(trial, place)
            end(error)
        with storage_errors(place):
            trial.set_user_attr("error", one_line(error))
            study.tell(trial, state=TrialState.FAIL)
        say(f"trial {trial.number} failed: {words}: {one_line(error)}")
        return
    with storage_errors(place):
        trial.set_user_attr("scores", found.scores)
        trial.set_user_attr("runs", found.runs)
        study.tell(trial, values)
    scores = ", ".join(f"{value:.4f}" for value in values)
    say(f"trial {trial.number}: {scores}: {words}")


def _hand_back(trial: optuna.Trial, place: Place) -> None:
    """Leave the trial RUNNING, to be taken over, without counting this try.

    An error of the storage is suppressed, so that the error that ended the trial is the one reported.
    """
    with suppress(StorageError), storage_errors(place):
        tries = trial.user_attrs.get("tries", 1)
        trial.set_user_attr("tries", tries - 1 if tries > 1 else 0)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its chain of explicit causes."""
    while error is not None:
        yield error
        error = error.__cause__


def settings_may_cause(error: Exception) -> bool:
    """Whether a run's settings may be what it failed by. Memory may lack for another process's sake, so it is not."""
    return not (_is_memory(error) or any(isinstance(cause, ELSEWHERE) for cause in _causes(error)))


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out, or the GPU is in an error state."""
    for cause in _causes(error):
        if isinstance(cause, MEMORY):
            return True
        if isinstance(cause, RuntimeError) and any(text in str(cause) for text in EXHAUSTED):
            return True
    return False


def end(error: Exception) -> NoReturn:
    """Raise the error in a form that the command line reports in one line."""
    if isinstance(error, BenchError | OSError):
        raise error
    raise BenchError(one_line(error)) from error


def brief(chosen: dict[str, Scalar]) -> str:
    """Settings on one line, with floats rounded for display."""
    rounded = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in chosen.items()}
    return ", ".join(f"{key}={value}" for key, value in rounded.items())
