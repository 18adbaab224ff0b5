"""Scores that were given before, by picture, prompt and scorer."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.api.scores import REWARD, Unscorable, blanked, rows_of, score_each, stacked, unscored
from bench.api.task import Prompt, Scores, Task, TaskAround
from bench.errors import BenchError, UsageError, one_line
from bench.scoring.folders import JUDGED
from bench.scoring.pictures import to_bytes
from bench.scoring.remote import as_details, as_numbers, plain
from bench.system.files import parse_json

if TYPE_CHECKING:
    from torch import Tensor


WAIT_S = 1
"""For another process that is writing scores."""


class RememberingTask(TaskAround):
    """A task that scores a picture once; scores are kept in an SQLite file. Failures are tried again.

    Where the file cannot be written (a read-only place, a full disk) it scores all the same, and `forgets` says why
    nothing is kept. A file that another process holds is waited for once, not for every picture, and then done without.
    Raises UsageError for a file that is no database.
    """

    def __init__(self, inner: Task, path: Path):
        super().__init__(inner)
        self.path = path
        self.forgets: str | None = None
        self.held = False
        """Whether another process holds the file."""
        self.kept: sqlite3.Connection | None = None
        self.remembered: set[str] | None = None
        self.fresh: set[str] | None = None
        """Names of the metrics that were remembered, and that the scorer has given now."""
        try:
            self.kept = sqlite3.connect(path, timeout=WAIT_S)
            self.kept.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, scores TEXT)")
        except sqlite3.OperationalError as error:
            self._forget(error)
            self.kept = None if self.held else _as_it_is(path)
        except sqlite3.Error as error:
            raise UsageError(f"cannot keep scores in {path}: {error}; move it away") from error

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        keys = [self._key(image, prompt) for image, prompt in zip(to_bytes(images_BCHW), prompts, strict=True)]
        found = {key: self._read(key) for key in keys}
        if len({frozenset(row.metrics) for row in found.values() if row}) > 1:
            found = dict.fromkeys(keys)  # written by hand, or by two scorers of one name
        self._score_new(found, keys, images_BCHW, prompts)
        if self.fresh is not None:
            found = {key: row if row and set(row.metrics) == self.fresh else None for key, row in found.items()}
            self._score_new(found, keys, images_BCHW, prompts)
        known = {key: row for key, row in found.items() if row is not None}
        return self._of_one_kind([known[key] for key in keys])

    def _score_new(
        self, found: dict[str, Scores | None], keys: list[str], images_BCHW: Tensor, prompts: list[Prompt]
    ) -> None:
        """Score what is not known. Raises Unscorable if nothing is known and nothing can be scored."""
        new = [i for i, key in enumerate(keys) if found[key] is None]
        if not new:
            return
        try:
            scored = score_each(self.inner, images_BCHW[new], [prompts[i] for i in new])
            self.fresh = set(scored.metrics)
        except Unscorable as error:
            known = next((row for row in found.values() if row), None)
            if known is None:
                raise
            scored = unscored(known, len(new), one_line(error))
        for place, i in enumerate(new):
            found[keys[i]] = one = _row(scored, place)
            if not np.isnan(one.rewards).any():
                self._write(keys[i], one)

    def _of_one_kind(self, rows: list[Scores]) -> Scores:
        """All of them. Raises UsageError where earlier pictures' scores were remembered with other metrics than the
        scorer gives now: a server may change and keep its name."""
        whole = stacked(rows)
        self.remembered = self.remembered or set(whole.metrics)
        if set(whole.metrics) != self.remembered:
            before, now = (", ".join(sorted(names)) or "none" for names in (self.remembered, set(whole.metrics)))
            raise UsageError(
                f"{self.path} holds scores of this scorer with the metrics {before}, and now it gives {now}: move the "
                "file away to score all pictures again"
            )
        return whole

    def _forget(self, error: sqlite3.Error) -> None:
        """Keep nothing any more; do without the file if another process holds it: every picture would wait for it."""
        self.forgets = f"{self.path}: {error}"
        self.held = (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        if self.held:
            self.kept = None

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
            details = as_details(content["details"], 1, self.name == JUDGED)
            found = blanked(Scores(as_numbers([content["reward"]], 1), metrics, details), self.headline)
            (reward,) = rows_of(self, found)[REWARD]
            return found if self.lowest_reward <= reward <= 1 else None  # NaN is neither: a failure is tried again
        except sqlite3.Error as error:
            self._forget(error)
        except (BenchError, KeyError, TypeError, ValueError, AttributeError):
            pass
        return None

    def _write(self, key: str, scores: Scores) -> None:
        if self.forgets or self.kept is None:
            return
        metrics = {name: plain(values)[0] for name, values in scores.metrics.items()}
        content = {"reward": plain(scores.rewards)[0], "metrics": metrics, "details": scores.details}
        try:
            with self.kept:
                self.kept.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, json.dumps(content)))
        except sqlite3.Error as error:
            self._forget(error)


def _as_it_is(path: Path) -> sqlite3.Connection | None:
    """A database that may be read but not written; None if there is none."""
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=WAIT_S, uri=True)
    except sqlite3.Error:
        return None


def _row(scores: Scores, i: int) -> Scores:
    metrics = {name: values[i : i + 1] for name, values in scores.metrics.items()}
    return Scores(scores.rewards[i : i + 1], metrics, scores.details[i : i + 1])
