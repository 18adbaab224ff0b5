"""Mirrors a run's records to the user's trackers while it trains, with the trackers of accelerate.

The records stay the only source: rows are read back from metrics.jsonl and evaluations.jsonl, and what is sent is noted
in tracked.jsonl before. A run that was killed therefore continues its curves without doubling a point; what a tracker
had not yet written itself when it was killed too is missing there.
"""

import json
import math
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.config.settings import flattened
from bench.config.trackers import Tracker
from bench.errors import BenchError, one_line
from bench.scoring.folders import PICTURES
from bench.store.names import EVALUATIONS, METRICS, TRACKED
from bench.store.run import Run
from bench.training.evaluate import Evaluation

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "multireward-bench"
"""Name of the project or experiment of all runs, for trackers that have such groups."""
REFUSED = re.compile(r"[^A-Za-z0-9_\-. :/]")
"""What mlflow refuses in the name of a metric."""
SHOWN = 8
"""Number of images of a task that are sent after an evaluation."""


@contextmanager
def mirrored(run: Run, here: bool, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """A function that sends the records of a run that are new since the last call; it does nothing without trackers.

    `here` is whether this process writes the run's records. A tracker that fails while the run trains is left out with
    a note; the run goes on. Raises BenchError for a tracker that cannot be started.
    """
    if not (run.spec.trackers and here):
        yield lambda: None
        return
    mirror = Mirror(run, say)
    try:
        yield mirror.send
        mirror.send()
    finally:
        mirror.close()


class Mirror:
    """The trackers of one run, and how far its records were sent."""

    def __init__(self, run: Run, say: Callable[[str], None]):
        self.run, self.say = run, say
        self.offsets = {METRICS: 0, EVALUATIONS: 0}
        sent = run.rows(TRACKED)
        self.sent = {(name, row["step"], row["task"]) for row in sent if "step" in row for name in row["to"]}
        """(tracker, step, task) of what was sent before; the task is empty for a row of metrics."""
        known = {name: identity for row in sent for name, identity in row.get("identities", {}).items()}
        self.trackers: dict[Tracker, GeneralTracker] = {name: self._start(name, known) for name in run.spec.trackers}
        before = {name for row in sent for name in row.get("identities", {})}
        if new := {name: known[name] for name in self.trackers if name not in before}:
            run.append(TRACKED, {"identities": new})

    def _start(self, name: Tracker, known: dict[str, str]) -> "GeneralTracker":
        """Start a tracker, or go on with the run that it has of this one; `known` gets the run's identity."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        # Accelerate's log needs it. It takes the process group of torch.distributed as it is.
        PartialState(cpu=self.run.spec.device == "cpu")
        folder, is_new = self.run.folder, name not in known
        # Kept in the run's folder: a folder that was deleted and made again is another run for the tracker too.
        identity = known.setdefault(name, secrets.token_hex(8))
        given: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": name, "logging_dir": folder},
            "wandb": {
                "run_name": PROJECT, "name": folder.name, "id": identity, "resume": "allow", "dir": str(folder),
                # Its capture of the terminal would fight with the progress bar.
                "settings": {"console": "off", "quiet": True},
            },
            "trackio": {"run_name": PROJECT, "name": f"{folder.name}-{identity}", "resume": "allow"},
            "swanlab": {
                "run_name": PROJECT, "experiment_name": folder.name, "id": identity, "resume": "allow",
                "logdir": str(folder / name),
            },
            "mlflow": {
                "experiment_name": PROJECT, "run_name": folder.name, "run_id": None if is_new else identity,
            },
        }  # fmt: skip
        try:
            tracker = LOGGER_TYPE_TO_CLASS[name](**given[name])
            # Only one process gets here; accelerate's own check would set up its processes anew.
            tracker.main_process_only = False
            tracker.start()
            if name == "mlflow":
                known[name] = tracker.active_run.info.run_id
            # TensorBoard would write the settings as a run of their own.
            if is_new and name != "tensorboard":
                tracker.store_init_configuration(_flat(self.run.spec.record()))
        except Exception as error:
            raise BenchError(f"the tracker {name!r} cannot be started: {one_line(error)}") from error
        return tracker

    def send(self) -> None:
        """Send the rows that the records have and the trackers do not, in the order of their steps."""
        metrics = [(row["step"], "", row) for row in self._new(METRICS)]
        scores = [(row["step"], row["task"], row) for row in self._new(EVALUATIONS)]
        for step, task, row in sorted(metrics + scores, key=lambda event: event[0]):
            # By tracker: one that is new, or that failed before, gets the earlier rows too.
            to = [name for name in self.trackers if (name, step, task) not in self.sent]
            if not to:
                continue
            self.sent |= {(name, step, task) for name in to}
            self.run.append(TRACKED, {"step": step, "task": task, "to": to})
            values = _scores(row) if task else {key: value for key, value in _flat(row).items() if key != "step"}
            self._each("log", values, step, to)
            if task and (pictures := self._pictures(task)):
                self._each("log_images", {f"images/{task}": pictures}, step, to)

    def _new(self, log: str) -> list[dict]:
        """The rows after those of the last call. The log was cut before training began, if at all."""
        path = self.run.folder / log
        if not path.is_file():
            return []
        with path.open("rb") as file:
            file.seek(self.offsets[log])
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.offsets[log] += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _pictures(self, task: str) -> list:
        """The first images of the evaluation, uint8 [H, W, 3], if the settings keep them and all have one size."""
        folder = self.run.folder / PICTURES / task
        if not (self.run.spec.evaluation.pictures and folder.is_dir()):
            return []
        from bench.scoring.folders import load, read
        from bench.scoring.pictures import to_bytes

        return [to_bytes(load(sample.path)) for sample in read(folder)[:SHOWN]]

    def _each(self, what: str, values: dict[str, Any], step: int, to: list[Tracker]) -> None:
        """Call a method of the named trackers that have it. A tracker that fails is left out until the next start."""
        for name in to:
            tracker = self.trackers.get(name)
            if tracker is None or not hasattr(tracker, what):
                continue
            try:
                if what == "log_images" and name == "tensorboard":
                    stacked = {key: np.stack(images) for key, images in values.items()}
                    tracker.log_images(stacked, step=step, dataformats="NHWC")
                else:
                    getattr(tracker, what)(_named(name, values), step=step)
            except Exception as error:
                self._leave_out(name, error)

    def close(self) -> None:
        """Let every tracker write what it still holds."""
        for name, tracker in list(self.trackers.items()):
            try:
                tracker.finish()
            except Exception as error:
                self._leave_out(name, error)

    def _leave_out(self, name: Tracker, error: Exception) -> None:
        del self.trackers[name]
        self.say(f"note: the tracker {name!r} failed and gets nothing more: {one_line(error)}")


def _named(tracker: Tracker, values: dict[str, Any]) -> dict[str, Any]:
    """The values by names that a tracker takes: mlflow refuses the "@" in names of measures (diversity@encoder)."""
    return {REFUSED.sub("_", key): value for key, value in values.items()} if tracker == "mlflow" else values


def _scores(row: dict) -> dict[str, float]:
    """Mean over strata of every metric of an evaluation; the headline is `score`."""
    found = Evaluation.from_record(row)
    means = {f"{metric}/{found.task}": found.estimate(metric).value for metric in found.rows}
    means[f"score/{found.task}"] = found.estimate().value
    return {f"evaluation/{name}": mean for name, mean in means.items() if not math.isnan(mean)}


def _flat(section: dict[str, Any]) -> dict[str, Any]:
    """Nested settings or counters with names such as evaluations/training; lists become text, empty sections vanish."""
    named = {name: value for name, value in flattened(section, "/").items() if value != {}}
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in named.items()}
