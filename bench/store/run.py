"""Results on disk: one folder a run, atomic writes, append-only metrics, a lock, resume.

<root>/<method>-<hash>-s<seed>/
    spec.json            the resolved spec and the backbone's hash
    provenance.jsonl     one entry per start: versions, device, commit, teachers' hashes, scorers' names
    metrics.jsonl        one line per update
    evaluations.jsonl    one line per evaluation, with every picture's scores
    probes.jsonl         one line per probe along training (empty unless asked for)
    checkpoint.safetensors   adapters, optimiser, EMA; step, meter and file sizes in its metadata
    adapter/             the result: the EMA student as a peft folder
    pictures/            of the student, where they are to be kept
    lock                 the process that has it
    failure.json         the error that ended its last start, until it is started again
    summary.json         written last; its presence means the run is finished
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.spec import Spec
from bench.errors import DamagedError, Stopped, UsageError, explained
from bench.hashing import tensors_hash
from bench.store.damage import checkpoint_state, log_lengths, read_starts
from bench.store.names import APPENDED, EVALUATIONS, FAILURE, LOGS, REPLACED, STARTS
from bench.store.shapes import check_points, check_state, check_summary
from bench.system.files import (
    described,
    is_file,
    json_bytes,
    naming,
    read_record,
    read_rows,
    read_text,
    remove_leftovers,
    write_atomic,
)
from bench.system.places import check_appendable, check_writable, locked, missing_folders, remove_empty
from bench.system.processes import identity
from bench.weights.hub import DIFFUSERS_FILE, FILES

if TYPE_CHECKING:
    from torch import Tensor

DAY_S = 86_400


class Run:
    """The folder of one run."""

    def __init__(self, root: Path, spec: Spec, backbone_hash: str, writes: bool = True):
        """`writes` is False in all but one of the processes that share a run."""
        self.spec, self.backbone_hash, self.writes = spec, backbone_hash, writes
        self.folder = root / f"{spec.method}-{spec.digest(backbone_hash)}-s{spec.seed}"
        self.checkpoint = self.folder / "checkpoint.safetensors"

    def check_place(self) -> None:
        """Raise UsageError if what a run writes could not be written: here, or in the cache beside."""
        if not self.writes:
            return
        pictures = self.folder / "pictures"
        kept = [pictures, *(pictures / task for task in self.spec.tasks)] if self.spec.evaluation.pictures else []
        for folder in (self.folder, self.folder / "adapter", *kept, self.folder.parent / "cache"):
            check_writable(folder)
        with self._advised():
            for name in APPENDED:
                check_appendable(self.folder / name)
            for name in (*REPLACED, *(f"adapter/{file}" for file in (*FILES, DIFFUSERS_FILE))):
                is_file(self.folder / name)

    def open(self) -> None:
        """Make the folder, or check that the one there is this run's. Raises UsageError for another's."""
        if not self.writes:
            return
        identity = {"spec": self.spec.record(), "backbone_hash": self.backbone_hash}
        path = self.folder / "spec.json"
        with self._advised():
            there = is_file(path)
            same = there and self._same(path)
        if there:
            if not same:
                raise UsageError(f"{self.folder} holds a run of another spec; move it away or use another --results")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json_bytes(identity))

    def _same(self, path: Path) -> bool:
        """Whether a stored identity is this run's, wherever either computes."""
        with described(path):
            identity = read_record(path)
            stored = Spec.model_validate(identity["spec"])
            mine = (self.spec.digest(self.backbone_hash), self.spec.seed)
            return (stored.digest(identity["backbone_hash"]), stored.seed) == mine

    @contextmanager
    def _advised(self) -> Iterator[None]:
        """Damage says what to do about it."""
        try:
            yield
        except DamagedError as error:
            raise DamagedError(f"{error}; move {self.folder} away, and the same command starts anew") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process. Raises BusyError naming the process that has it.

        What an earlier start left half-written is cleared away. A start that is refused leaves nothing behind where
        there was nothing before.
        """
        if not self.writes:
            yield
            return
        self.check_place()
        made = missing_folders(self.folder)
        with locked(self.folder / "lock", wait=False) as file:
            for folder in (self.folder, self.folder / "adapter"):
                remove_leftovers(folder)
            remove_leftovers(self.folder.parent / "cache", older_than_s=DAY_S)  # other runs write there too
            _mend(self.folder / "provenance.jsonl")
            file.truncate(0)
            file.write(identity())
            file.flush()
            (self.folder / FAILURE).unlink(missing_ok=True)
            try:
                yield
            except Exception as error:
                if isinstance(error, UsageError) and made and not (self.folder / "provenance.jsonl").exists():
                    for name in ("spec.json", "lock"):
                        (self.folder / name).unlink(missing_ok=True)
                    remove_empty(made)
                elif not isinstance(error, (Stopped, BrokenPipeError)):
                    with suppress(OSError):  # where even this cannot be written the error itself must do
                        write_atomic(self.folder / FAILURE, json_bytes({"error": explained(error)}))
                raise
            finally:
                file.truncate(0)  # this process may live on with another run

    def append(self, log: str, row: dict) -> None:
        """Add one line to metrics.jsonl, evaluations.jsonl or provenance.jsonl."""
        path = self.folder / log
        if self.writes:
            with naming(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self, log: str) -> list[dict]:
        """The lines of a log; none if it is not there. Raises DamagedError."""
        path = self.folder / log
        with self._advised():
            if not is_file(path):
                return []
            rows = read_rows(path)
            if log == EVALUATIONS:
                check_points(path, rows)
            return rows

    def starts(self) -> list[dict]:
        """The lines of provenance.jsonl, each with the hashes of the run's "teachers". Raises DamagedError."""
        path = self.folder / STARTS
        with self._advised():
            return read_starts(path) if is_file(path) else []

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
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        made = {"logs": lengths, "spec": self.spec.digest(self.backbone_hash), "tensors": tensors_hash(tensors)}
        write_atomic(self.checkpoint, save(tensors, {"state": json.dumps(state | made)}))

    def restore(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint, with the logs cut back to it; None (and empty logs) when there is none.

        Raises UsageError for a checkpoint of another spec, DamagedError for a checkpoint or logs from which training
        cannot go on: nothing is changed then.
        """
        with self._advised():
            there = is_file(self.checkpoint)
        if not there:
            for log in LOGS if self.writes else ():
                (self.folder / log).unlink(missing_ok=True)
            return None
        with self._advised():
            tensors, state = read_checkpoint(self.checkpoint)
            if state.get("spec") != self.spec.digest(self.backbone_hash):
                raise UsageError(f"{self.checkpoint} is a checkpoint of another spec")
            check_state(self.checkpoint, state)
            lengths = log_lengths(self.folder, state)
            for path, length in lengths.items():
                _check_rows(path, length)
        for path, length in lengths.items() if self.writes else ():
            path.touch()  # an empty log may have been lost
            os.truncate(path, length)
        return tensors, state

    @property
    def summary(self) -> dict | None:
        """The result; None while there is none. Raises DamagedError."""
        path = self.folder / "summary.json"
        with self._advised():
            if not is_file(path):
                return None
            summary = read_record(path)
            check_summary(path, summary, self.spec.tasks)
        return summary

    def finish(self, summary: dict) -> None:
        if self.writes:
            write_atomic(self.folder / "summary.json", json_bytes(summary))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a checkpoint. Raises DamagedError if it is corrupt."""
    from safetensors import SafetensorError, safe_open

    state = checkpoint_state(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise DamagedError(f"corrupt checkpoint {path}: {error}") from error
    if "tensors" in state and state["tensors"] != tensors_hash(tensors):  # older versions wrote no hash
        raise DamagedError(f"corrupt checkpoint {path}: its tensors are not those that were written")
    return tensors, state


def _mend(log: Path) -> None:
    """Cut off the line that a kill left half-written: the next would be glued to it."""
    if not log.is_file():
        return
    with log.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _check_rows(path: Path, length: int) -> None:
    """Raise DamagedError if a log's first bytes are no whole rows."""
    rows = read_rows(path, length) if length else []
    if length and not read_text(path, length).endswith("\n"):
        raise DamagedError(f"{path} is cut in the middle of a line at its checkpoint")
    if path.name == EVALUATIONS:
        check_points(path, rows)
