"""A run's results on disk: one folder per run, with atomic writes, append-only logs, a lock and checkpoints.

<root>/<method>-<hash>-s<seed>/
    spec.json            the resolved spec and the backbone's hash
    provenance.jsonl     one entry per start: versions, device, commit, teachers' hashes, scorers' names
    metrics.jsonl        one line per update
    evaluations.jsonl    one line per held-out evaluation and task, with the scores of every image
    probes.jsonl         one line per probe during training (empty unless probes are requested)
    tracked.jsonl        what was sent to the user's trackers, if the settings name some
    points.jsonl         one line per further student (Method.points) and task, with the scores of every image
    checkpoint.safetensors   adapters, optimiser, EMA; step, meter and log lengths in its metadata
    adapter/             the result: the EMA student as a peft folder
    model/               the result of full fine-tuning instead: the EMA student in diffusers' format
    points/              the further students as peft folders, if the method trains a family of them
    pictures/            the student's images, if the settings ask to keep them
    lock                 the process that carries out the run
    failure.json         the error that ended the last start; removed by the next start
    summary.json         written last; its presence means that the run is finished
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.backbones.pipeline_files import NETWORK_CONFIG, NETWORK_WEIGHTS
from bench.config.spec import Spec
from bench.errors import DamagedError, Stopped, UsageError, explained
from bench.hashing import tensors_hash
from bench.registry import find
from bench.store.damage import checkpoint_state, log_lengths, read_starts
from bench.store.names import (
    APPENDED,
    EVALUATIONS,
    FAILURE,
    LOGS,
    POINTS,
    POINTS_LOG,
    REPLACED,
    STARTS,
    TRACKED,
    weights_folder,
)
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
    """The folder of one run: a method, its settings and a seed."""

    def __init__(self, root: Path, spec: Spec, backbone_hash: str, writes: bool = True):
        """Name the folder of a run, without making it.

        Of several processes that share a run only one writes; the others have `writes` False.
        """
        self.spec, self.backbone_hash, self.writes = spec, backbone_hash, writes
        self.folder = root / f"{spec.method}-{spec.digest(backbone_hash)}-s{spec.seed}"
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.weights = weights_folder(self.folder, spec.full_finetuning)
        """Folder of the trained student."""

    def check_place(self) -> None:
        """Raise UsageError if one of the run's files, here or in the shared cache, could not be written."""
        if not self.writes:
            return
        pictures = self.folder / "pictures"
        folders = [self.folder, self.weights]
        if self.spec.evaluation.pictures:
            folders += [pictures, *(pictures / task for task in self.spec.tasks)]
        points = find("method", self.spec.method).points(self.spec)
        folders += [self.folder / POINTS / point for point in points]
        for folder in (*folders, self.folder.parent / "cache"):
            check_writable(folder)
        files = (NETWORK_CONFIG, NETWORK_WEIGHTS) if self.spec.full_finetuning else (*FILES, DIFFUSERS_FILE)
        student = [f"{self.weights.name}/{file}" for file in files]
        with self._advised():
            for name in APPENDED:
                check_appendable(self.folder / name)
            for name in (*REPLACED, *student):
                is_file(self.folder / name)

    def open(self) -> None:
        """Make the folder, or check that an existing one is this run's. Raises UsageError if it is not."""
        if not self.writes:
            return
        identity = {"spec": self.spec.record(), "backbone_hash": self.backbone_hash}
        path = self.folder / "spec.json"
        with self._advised():
            exists = is_file(path)
            same = exists and self._same(path)
        if exists:
            if not same:
                cure = "move it away or use a different --results"
                raise UsageError(f"{self.folder} contains a run with a different spec; {cure}")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json_bytes(identity))

    def _same(self, path: Path) -> bool:
        """Return whether a stored identity is this run's.

        Digests are compared, because settings that only decide where or in what portions to compute may differ.
        """
        with described(path):
            identity = read_record(path)
            stored = Spec.model_validate(identity["spec"])
            mine = (self.spec.digest(self.backbone_hash), self.spec.seed)
            return (stored.digest(identity["backbone_hash"]), stored.seed) == mine

    @contextmanager
    def _advised(self) -> Iterator[None]:
        """Add advice to the message of a DamagedError."""
        try:
            yield
        except DamagedError as error:
            cure = f"move {self.folder} away, then rerun the command to start over"
            raise DamagedError(f"{error}; {cure}") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process. Raises BusyError with the process that already holds it.

        Files that an earlier start left half-written are removed. If the block raises UsageError in a new run, the
        folder is removed again. Other errors are recorded in failure.json.
        """
        if not self.writes:
            yield
            return
        self.check_place()
        made = missing_folders(self.folder)
        with locked(self.folder / "lock", wait=False) as file:
            for folder in (self.folder, self.weights, *(self.folder / POINTS).glob("*/")):
                remove_leftovers(folder)
            # Other runs write to the cache at the same time, so only old leftovers are removed there.
            remove_leftovers(self.folder.parent / "cache", older_than_s=DAY_S)
            for log in (STARTS, POINTS_LOG, TRACKED):
                _mend(self.folder / log)
            file.truncate(0)
            file.write(identity())
            file.flush()
            (self.folder / FAILURE).unlink(missing_ok=True)
            try:
                yield
            except Exception as error:
                refused = isinstance(error, UsageError) and bool(made)
                if refused and not (self.folder / "provenance.jsonl").exists():
                    for name in ("spec.json", "lock"):
                        (self.folder / name).unlink(missing_ok=True)
                    remove_empty(made)
                elif not isinstance(error, (Stopped, BrokenPipeError)):
                    # A failure to write the record, for example on a full disk, must not hide the error itself.
                    with suppress(OSError):
                        write_atomic(self.folder / FAILURE, json_bytes({"error": explained(error)}))
                raise
            finally:
                # This process may continue with a different run, and must no longer count as this run's owner.
                file.truncate(0)

    def append(self, log: str, row: dict) -> None:
        """Append one row, as a line of JSON, to one of the files in APPENDED."""
        path = self.folder / log
        if self.writes:
            with naming(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self, log: str) -> list[dict]:
        """Return the rows of a log, empty if it does not exist. Raises DamagedError for invalid rows."""
        path = self.folder / log
        with self._advised():
            if not is_file(path):
                return []
            rows = read_rows(path)
            if log == EVALUATIONS:
                check_points(path, rows)
            return rows

    def starts(self) -> list[dict]:
        """Return the rows of provenance.jsonl, each with the hashes of the run's "teachers". Raises DamagedError."""
        path = self.folder / STARTS
        with self._advised():
            return read_starts(path) if is_file(path) else []

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write a checkpoint with the current lengths of the logs, to which resuming truncates them."""
        from safetensors.torch import save

        if not self.writes:
            return
        # The logs must be on disk before a checkpoint refers to their lengths.
        for log in LOGS:
            path = self.folder / log
            path.touch()
            with path.open("rb") as file:
                os.fsync(file.fileno())
        lengths = {log: (self.folder / log).stat().st_size for log in LOGS}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        digest = self.spec.digest(self.backbone_hash)
        made = {"logs": lengths, "spec": digest, "tensors": tensors_hash(tensors)}
        metadata = {"state": json.dumps(state | made)}
        write_atomic(self.checkpoint, save(tensors, metadata))

    def restore(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and state of the last checkpoint, and truncate the logs to their lengths at that time.

        Without a checkpoint the logs are removed and the result is None. Raises UsageError for a checkpoint of a
        different spec, and DamagedError if the checkpoint or a log is damaged; nothing is changed then.
        """
        with self._advised():
            exists = is_file(self.checkpoint)
        if not exists:
            for log in LOGS if self.writes else ():
                (self.folder / log).unlink(missing_ok=True)
            return None
        with self._advised():
            tensors, state = read_checkpoint(self.checkpoint)
            if state.get("spec") != self.spec.digest(self.backbone_hash):
                raise UsageError(f"{self.checkpoint} belongs to a run with a different spec")
            check_state(self.checkpoint, state)
            lengths = log_lengths(self.folder, state)
            for path, length in lengths.items():
                _check_rows(path, length)
        for path, length in lengths.items() if self.writes else ():
            # An empty log may be missing.
            path.touch()
            os.truncate(path, length)
        return tensors, state

    @property
    def summary(self) -> dict | None:
        """The result of the run; None before it is finished. Raises DamagedError for an invalid one."""
        path = self.folder / "summary.json"
        with self._advised():
            if not is_file(path):
                return None
            summary = read_record(path)
            check_summary(path, summary, self.spec.tasks)
        return summary

    def finish(self, summary: dict) -> None:
        """Write summary.json, which marks the run as finished."""
        if self.writes:
            write_atomic(self.folder / "summary.json", json_bytes(summary))


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and state of a checkpoint. Raises DamagedError if it is corrupt."""
    from safetensors import SafetensorError, safe_open

    state = checkpoint_state(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise DamagedError(f"corrupt checkpoint {path}: {error}") from error
    # Older versions wrote no hash.
    if "tensors" in state and state["tensors"] != tensors_hash(tensors):
        raise DamagedError(f"corrupt checkpoint {path}: its tensors do not match their recorded hash")
    return tensors, state


def _mend(log: Path) -> None:
    """Remove a last line that a kill left half-written, because the next line would be appended to it."""
    if not log.is_file():
        return
    with log.open("rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _check_rows(path: Path, length: int) -> None:
    """Raise DamagedError if a log's first `length` bytes are not complete rows."""
    rows = read_rows(path, length) if length else []
    if length and not read_text(path, length).endswith("\n"):
        raise DamagedError(f"{path} has an incomplete line at the checkpoint's position")
    if path.name == EVALUATIONS:
        check_points(path, rows)
