"""Files of a run's folder, and those that rooms above read too."""

from pathlib import Path

from bench.system.files import described, is_file, read_record
from bench.terminal import legible

FAILURE = "failure.json"
STARTS = "provenance.jsonl"
EVALUATIONS = "evaluations.jsonl"
LOGS = ("metrics.jsonl", EVALUATIONS, "probes.jsonl")
APPENDED = (*LOGS, STARTS, "lock")
REPLACED = ("spec.json", "checkpoint.safetensors", FAILURE, "summary.json")


def recorded_failure(folder: Path, since: float = 0.0) -> str | None:
    """The error that ended a run's last start, if one did, and not before the time `since`. Raises DamagedError."""
    path = folder / FAILURE
    if not is_file(path) or path.stat().st_mtime < since:
        return None
    with described(path):
        error = read_record(path)["error"]
        if not isinstance(error, str):
            raise TypeError("its error is no text")
        return legible(" ".join(error.split())) or "it does not say why"
