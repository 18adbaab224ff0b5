"""Scores that were given before, by picture, prompt and scorer."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.api.scores import score_each, stacked
from bench.api.task import Prompt, Scores, Task, TaskAround
from bench.errors import DamagedError, UsageError
from bench.scoring.pictures import to_bytes
from bench.scoring.remote import as_numbers, plain
from bench.system.files import parse_json

if TYPE_CHECKING:
    from torch import Tensor


class RememberingTask(TaskAround):
    """A task that scores a picture once; scores are kept in an SQLite file. Failures are tried again.

    Where the file cannot be written (a read-only place, a full disk, another process at it) it scores all the same, and
    `forgets` says why nothing is kept. Raises UsageError for a file that is no database.
    """

    def __init__(self, inner: Task, path: Path):
        super().__init__(inner)
        self.forgets: str | None = None
        self.kept: sqlite3.Connection | None = None
        try:
            self.kept = sqlite3.connect(path)
            self.kept.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, scores TEXT)")
        except sqlite3.OperationalError as error:
            self.forgets = f"{path}: {error}"
            self.kept = _as_it_is(path)
        except sqlite3.Error as error:
            raise UsageError(f"cannot keep scores in {path}: {error}; move it away") from error

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        keys = [self._key(image, prompt) for image, prompt in zip(to_bytes(images_BCHW), prompts, strict=True)]
        found = {key: self._read(key) for key in keys}
        new = [i for i, key in enumerate(keys) if found[key] is None]
        if new:
            scored = score_each(self.inner, images_BCHW[new], [prompts[i] for i in new])
            for place, i in enumerate(new):
                found[keys[i]] = one = _row(scored, place)
                if not np.isnan(one.rewards).any():
                    self._write(keys[i], one)
        return stacked([found[key] for key in keys])

    def _key(self, image_HWC: np.ndarray, prompt: Prompt) -> str:
        told = json.dumps([self.scorer_name, prompt.text, prompt.stratum, prompt.metadata, image_HWC.shape])
        return hashlib.sha256(told.encode() + image_HWC.tobytes()).hexdigest()

    def _read(self, key: str) -> Scores | None:
        """None for what is not known, or not as it was written."""
        if self.kept is None:
            return None
        try:
            row = self.kept.execute("SELECT scores FROM scores WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            content = parse_json(row[0], "a remembered score")
            metrics = {name: as_numbers([value], 1) for name, value in content["metrics"].items()}
            return Scores(as_numbers([content["reward"]], 1), metrics, list(content["details"]))
        except sqlite3.Error as error:
            self.forgets = str(error)
        except (DamagedError, KeyError, TypeError, ValueError, AttributeError):
            pass
        return None

    def _write(self, key: str, scores: Scores) -> None:
        if self.forgets:
            return
        metrics = {name: plain(values)[0] for name, values in scores.metrics.items()}
        content = {"reward": plain(scores.rewards)[0], "metrics": metrics, "details": scores.details}
        try:
            with self.kept:
                self.kept.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, json.dumps(content)))
        except sqlite3.Error as error:
            self.forgets = str(error)


def _as_it_is(path: Path) -> sqlite3.Connection | None:
    """A database that may be read but not written; None if there is none."""
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error:
        return None


def _row(scores: Scores, i: int) -> Scores:
    metrics = {name: values[i : i + 1] for name, values in scores.metrics.items()}
    return Scores(scores.rewards[i : i + 1], metrics, scores.details[i : i + 1])
