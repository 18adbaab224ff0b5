"""Names of the files in a run's folder, and the error that a run may have recorded there."""

from pathlib import Path

from bench.system.files import described, is_file, read_record
from bench.terminal import legible

FAILURE = "failure.json"
STARTS = "provenance.jsonl"
EVALUATIONS = "evaluations.jsonl"
METRICS = "metrics.jsonl"
LOGS = (METRICS, EVALUATIONS, "probes.jsonl")
"""Logs that a checkpoint covers: resuming truncates them to their lengths at the checkpoint."""
ADAPTER, MODEL = "adapter", "model"
"""Folder of the result: the student's adapter, or its whole network after full fine-tuning."""
POINTS = "points"
"""Folder with the adapters of a run's further students (Method.points)."""
POINTS_LOG = "points.jsonl"
"""Their evaluations. They are made after training, so no checkpoint covers them."""
TRACKED = "tracked.jsonl"
"""What was sent to trackers (bench/training/tracking.py)."""
APPENDED = (*LOGS, STARTS, POINTS_LOG, TRACKED, "lock")
"""Files that are written in place."""
REPLACED = ("spec.json", "checkpoint.safetensors", FAILURE, "summary.json")
"""Files that are replaced in one step."""


def weights_folder(folder: Path, full_finetuning: bool) -> Path:
    """The folder of the trained student in a run's folder."""
    return folder / (MODEL if full_finetuning else ADAPTER)


def recorded_failure(folder: Path, since: float = 0.0) -> str | None:
    """Return the error that ended a run's last start; None if there is none, or only one from before `since`.

    `since` is in seconds since the epoch. Raises DamagedError for an invalid record.
    """
    path = folder / FAILURE
    if not is_file(path) or path.stat().st_mtime < since:
        return None
    with described(path):
        error = read_record(path)["error"]
        if not isinstance(error, str):
            raise TypeError("its error is not a string")
        return legible(" ".join(error.split())) or "failed without a message"
