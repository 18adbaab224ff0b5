"""Results on disk: one folder a run, atomic writes, append-only metrics, a lock, resume.

<root>/<method>-<hash>-s<seed>/
    spec.json            the resolved spec and the backbone's hash
    provenance.jsonl     one entry per start: versions, device, commit, teachers' hashes
    metrics.jsonl        one line per update
    evaluations.jsonl    one line per evaluation, with every picture's scores
    probes.jsonl         one line per probe along training (empty unless asked for)
    checkpoint.safetensors   adapters, optimiser, EMA; step, meter and file sizes in its metadata
    adapter/             the result: the EMA student as a peft folder
    lock                 the process that has it
    failure.json         the error that ended its last start, until it is started again
    summary.json         written last; its presence means the run is finished
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.errors import BenchError, BusyError, Stopped, UsageError, one_line
from bench.files import write_atomic
from bench.outcome import FAILURE
from bench.processes import identity
from bench.spec import Spec

LOGS = ("metrics.jsonl", "evaluations.jsonl", "probes.jsonl")


class Run:
    """The folder of one run."""

    def __init__(self, root: Path, spec: Spec, backbone_hash: str, writes: bool = True):
        """`writes` is False in all but one of the processes that share a run."""
        self.spec, self.backbone_hash, self.writes = spec, backbone_hash, writes
        self.folder = root / f"{spec.method}-{spec.digest(backbone_hash)}-s{spec.seed}"
        self.checkpoint = self.folder / "checkpoint.safetensors"

    def open(self) -> None:
        """Make the folder, or check that the one there is this run's."""
        if not self.writes:
            return
        identity = {"spec": self.spec.record(), "backbone_hash": self.backbone_hash}
        path = self.folder / "spec.json"
        if path.exists():
            if not self._same(json.loads(path.read_text())):
                raise UsageError(f"{self.folder} holds a run of another spec; move it away or use another --results")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _json(identity))

    def _same(self, identity: dict) -> bool:
        """Whether a stored identity is this run's, wherever either computes."""
        stored = Spec.model_validate(identity["spec"])
        mine = (self.spec.digest(self.backbone_hash), self.spec.seed)
        return (stored.digest(identity["backbone_hash"]), stored.seed) == mine

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process. Raises BusyError naming the process that has it."""
        if not self.writes:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read().split()[:2] or ["?"]
                raise BusyError(f"{self.folder} is being run by process {' on '.join(owner)}") from error
            except OSError as error:
                raise BenchError(f"the file system of {self.folder} has no locks (flock): {error}") from error
            file.truncate(0)
            file.write(identity())
            file.flush()
            (self.folder / FAILURE).unlink(missing_ok=True)
            try:
                yield
            except Exception as error:
                if not isinstance(error, Stopped):
                    write_atomic(self.folder / FAILURE, _json({"error": one_line(error)}))
                raise
            finally:
                file.truncate(0)  # this process may live on with another run

    def append(self, log: str, row: dict) -> None:
        """Add one line to metrics.jsonl, evaluations.jsonl or provenance.jsonl."""
        if self.writes:
            with (self.folder / log).open("a") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self, log: str) -> list[dict]:
        path = self.folder / log
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Checkpoint. The logs' lengths go with it, so that resuming can cut them back to the same moment."""
        from safetensors.torch import save

        if not self.writes:
            return
        for log in LOGS:
            path = self.folder / log
            path.touch()
            with path.open("rb") as file:
                os.fsync(file.fileno())
        lengths = {log: (self.folder / log).stat().st_size for log in LOGS}
        metadata = {"state": json.dumps(state | {"logs": lengths, "spec": self.spec.digest(self.backbone_hash)})}
        write_atomic(self.checkpoint, save({k: v.contiguous() for k, v in tensors.items()}, metadata))

    def restore(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint, with the logs cut back to it; None (and empty logs) when there is none."""
        if not self.checkpoint.exists():
            for log in LOGS if self.writes else ():
                (self.folder / log).unlink(missing_ok=True)
            return None
        tensors, state = read_checkpoint(self.checkpoint)
        if state.get("spec") != self.spec.digest(self.backbone_hash):
            raise UsageError(f"{self.checkpoint} is a checkpoint of another spec")
        for log, length in state["logs"].items() if self.writes else ():
            os.truncate(self.folder / log, length)
        return tensors, state

    @property
    def summary(self) -> dict | None:
        path = self.folder / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, summary: dict) -> None:
        if self.writes:
            write_atomic(self.folder / "summary.json", _json(summary))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint. Raises UsageError if it is corrupt."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {key: file.get_tensor(key) for key in file.keys()}, state  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UsageError(f"corrupt checkpoint {path}: {error}") from error


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
