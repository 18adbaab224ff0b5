"""A worker of a study: takes trials, carries them out, tells their values; any number of them join and leave.

Every trial that is under way is held by a lock of its worker's process, which the system gives free when that dies.
So a trial of a dead worker is seen at once and taken over: same number, same settings, its runs go on from their
checkpoints. Optuna's own heartbeat would need an RDB storage and forget the half-done run.
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
from sweeps.study import Scalar, StudySpec, open_study, sampler

TRIES = 3
"""A trial whose worker dies, or has no memory for it, this often has failed."""
ELSEWHERE = (OSError, ImportError, MissingError, DamagedError)
"""Errors that no settings cause: a full disk, a scorer that does not answer, a damaged checkpoint."""
MEMORY = (MemoryError, torch.OutOfMemoryError)
EXHAUSTED = (CPU_ALLOCATOR, "CUDA error")
"""In the words of a RuntimeError after which this process cannot be trusted with another trial."""
WAIT_S = 1.0
Measure = Callable[..., Measured]
Say = Callable[[str], None]


class Claims:
    """Who has which trial in hand, by locks in the study's folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold while looking for a trial: two workers must not take the same one, or one too many."""
        with self._held("lock", wait=True):
            yield

    def take(self, number: int) -> ExitStack | None:
        """The trial's lock, held until it is closed; None if a living worker has it."""
        try:
            return self._held(f"{number}.lock", wait=False)
        except BusyError:
            return None

    def _held(self, name: str, wait: bool) -> ExitStack:
        held = ExitStack()
        try:
            held.enter_context(locked(self.folder / name, wait))
        except OSError as error:
            cause = error.strerror or error
            raise UsageError(f"cannot write {self.folder / name}: {cause}; use another --results") from error
        return held


def work(spec: StudySpec, place: Place, say: Say = lambda _: None, carry_out: Measure = measure) -> optuna.Study:
    """Carry out trials until the study has all of its own, waiting for those of other workers; returns the study.

    Raises BenchError if every trial failed, StorageError if the storage cannot be used or breaks down on the way, and
    what is no fault of a trial's settings (ELSEWHERE, no memory): the same command then goes on with what is there.
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
        raise BenchError(f"every trial failed; the last: {trials[-1].user_attrs.get('error', 'its worker died')}")
    return study


def complete(spec: StudySpec, study: optuna.Study, place: Place) -> bool:
    """Whether all trials of the study have ended."""
    with storage_errors(place):
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
    ended = [state for state in states if state not in (TrialState.WAITING, TrialState.RUNNING)]
    return len(ended) >= spec.trials and TrialState.RUNNING not in states


Taken = tuple[optuna.Trial, dict[str, Scalar], ExitStack]


def _next(spec: StudySpec, study: optuna.Study, claims: Claims) -> tuple[Taken | None, bool]:
    """A trial of a dead worker, else a new one, with its settings and lock; and whether others are under way."""
    trials = study.get_trials(deepcopy=False)
    busy = False
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        lock = claims.take(trial.number)
        if lock is None:
            busy = True
        elif study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:
            lock.close()  # its worker was just done with it
        elif trial.user_attrs.get("tries", 1) >= TRIES:
            with lock:
                study.tell(trial.number, state=TrialState.FAIL)
        else:
            return _adopt(spec, study, trial, lock), busy
    begun = [trial for trial in trials if trial.state != TrialState.WAITING]
    if len(begun) >= spec.trials:
        return None, busy
    study.sampler = sampler(spec, len(begun))
    new = study.ask()
    lock = claims.take(new.number)
    if lock is None:
        raise BenchError(f"trial {new.number} is new and yet in a worker's hands: is the storage another study's?")
    return (new, spec.suggest(new), lock), busy


def _adopt(spec: StudySpec, study: optuna.Study, frozen: FrozenTrial, lock: ExitStack) -> Taken:
    """A dead worker's trial; what it had been given stays, the rest is drawn now."""
    study.sampler = sampler(spec, frozen.number)
    trial = optuna.Trial(study, frozen._trial_id)  # no public way leads to a trial that is RUNNING
    trial.set_user_attr("tries", frozen.user_attrs.get("tries", 1) + 1)
    return trial, spec.suggest(trial), lock


def _carry_out(
    spec: StudySpec, place: Place, study: optuna.Study, trial: optuna.Trial, chosen: dict[str, Scalar], say: Say,
    carry_out: Measure,
) -> None:  # fmt: skip
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
    except (KeyboardInterrupt, SystemExit):  # an interrupt, a time limit: no death
        _hand_back(trial, place)
        raise
    except StorageError:  # the trial stays in hand, and is gone on with when the storage is back
        raise
    except PrunedError:
        with storage_errors(place):
            study.tell(trial, state=TrialState.PRUNED)
        say(f"trial {trial.number} pruned: {words}")
        return
    except Exception as error:  # whatever the settings break, the other trials go on
        if _is_memory(error):  # as one that the system kills for it: the settings may be what needs too much
            with suppress(StorageError), storage_errors(place):
                trial.set_user_attr("error", one_line(error))
            _end(error)
        if any(isinstance(cause, ELSEWHERE) for cause in _causes(error)):
            _hand_back(trial, place)
            _end(error)
        with storage_errors(place):
            trial.set_user_attr("error", one_line(error))
            study.tell(trial, state=TrialState.FAIL)
        say(f"trial {trial.number} failed: {words}: {one_line(error)}")
        return
    with storage_errors(place):
        trial.set_user_attr("scores", found.scores)
        trial.set_user_attr("runs", found.runs)
        study.tell(trial, values)
    say(f"trial {trial.number}: {', '.join(f'{value:.4f}' for value in values)}: {words}")


def _hand_back(trial: optuna.Trial, place: Place) -> None:
    """The trial stays in hand, and this try does not count. A storage that fails too is not what is told."""
    with suppress(StorageError), storage_errors(place):
        tries = trial.user_attrs.get("tries", 1)
        trial.set_user_attr("tries", tries - 1 if tries > 1 else 0)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_memory(error: Exception) -> bool:
    return any(
        isinstance(cause, MEMORY) or (isinstance(cause, RuntimeError) and any(text in str(cause) for text in EXHAUSTED))
        for cause in _causes(error)
    )


def _end(error: Exception) -> NoReturn:
    """Raise the error as one that ends a program in one line."""
    if isinstance(error, BenchError | OSError):
        raise error
    raise BenchError(one_line(error)) from error


def brief(chosen: dict[str, Scalar]) -> str:
    """Settings for people."""
    return ", ".join(f"{key}={v:.4g}" if isinstance(v, float) else f"{key}={v}" for key, v in chosen.items())
