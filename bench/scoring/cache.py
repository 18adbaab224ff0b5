"""A cache of scores on disk, by image, prompt and scorer."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis.metric_names import REWARD
from bench.api.scores import Unscorable, blanked, rows_of, score_each, stacked, unscored
from bench.api.task import Prompt, Scores, Task, TaskAround
from bench.errors import BenchError, UsageError, one_line
from bench.scoring.folders import JUDGED
from bench.scoring.pictures import to_bytes
from bench.scoring.remote import as_details, as_numbers, plain
from bench.system.files import parse_json

if TYPE_CHECKING:
    from torch import Tensor


WAIT_S = 1
"""How long to wait for another process that is writing scores."""


class RememberingTask(TaskAround):
    """A task that scores each image once and keeps the scores in an SQLite file; failures are tried again.

    If the file cannot be written (read-only folder, full disk), scoring continues and `forgets` holds the reason. A
    file that another process holds is waited for only once, because every image would wait again; it is not used after
    that. Raises UsageError for a file that is not a database.
    """

    def __init__(self, inner: Task, path: Path):
        super().__init__(inner)
        self.path = path
        """Why scores are not kept; None while they are."""
        self.forgets: str | None = None
        self.held = False
        """Whether another process holds the file."""
        self.kept: sqlite3.Connection | None = None
        self.remembered: set[str] | None = None
        self.fresh: set[str] | None = None
        """Metrics of the first scores returned, and metrics that the scorer gave last; None before there are any."""
        try:
            self.kept = sqlite3.connect(path, timeout=WAIT_S)
            self.kept.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, scores TEXT)")
        except sqlite3.OperationalError as error:
            self._forget(error)
            self.kept = None if self.held else _read_only(path)
        except sqlite3.Error as error:
            raise UsageError(f"cannot keep scores in {path}: {error}; move this file away") from error

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """Scores [B] of the images, cached ones where possible. Raises UsageError if their metrics differ."""
        images = to_bytes(images_BCHW)
        keys = [self._key(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        found = {key: self._read(key) for key in keys}
        kinds = {frozenset(row.metrics) for row in found.values() if row}
        if len(kinds) > 1:  # edited by hand, or two scorers share a name: score all of them again
            found = dict.fromkeys(keys)
        self._score_new(found, keys, images_BCHW, prompts)
        if self.fresh is not None:
            # Cached scores whose metrics differ from the new ones are replaced, to return one set of metrics.
            for key, row in found.items():
                if row is not None and set(row.metrics) != self.fresh:
                    found[key] = None
            self._score_new(found, keys, images_BCHW, prompts)
        known = {key: row for key, row in found.items() if row is not None}
        return self._of_one_kind([known[key] for key in keys])

    def _score_new(
        self, found: dict[str, Scores | None], keys: list[str], images_BCHW: Tensor, prompts: list[Prompt]
    ) -> None:
        """Score what is not known, into `found`. Raises Unscorable if nothing is known and nothing can be scored."""
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
        for row, i in enumerate(new):
            one = _row(scored, row)
            found[keys[i]] = one
            if not np.isnan(one.rewards).any():
                self._write(keys[i], one)

    def _of_one_kind(self, rows: list[Scores]) -> Scores:
        """Stack the scores.

        Raises UsageError if earlier images had other metrics: a server may change and keep its scorer's name.
        """
        whole = stacked(rows)
        self.remembered = self.remembered or set(whole.metrics)
        if set(whole.metrics) != self.remembered:
            before = ", ".join(sorted(self.remembered)) or "none"
            now = ", ".join(sorted(whole.metrics)) or "none"
            raise UsageError(
                f"{self.path} holds scores of this scorer with the metrics {before}, but it now gives {now}: move "
                "the file away to score all images again"
            )
        return whole

    def _forget(self, error: sqlite3.Error) -> None:
        """Stop keeping scores; stop reading them too if another process holds the file."""
        self.forgets = f"{self.path}: {error}"
        # Extended SQLite error codes carry the primary code in their lowest byte.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        self.held = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        if self.held:
            self.kept = None

    def _key(self, image_HWC: np.ndarray, prompt: Prompt) -> str:
        """The hash of everything that a score may depend on."""
        known = [self.scorer_name, prompt.text, prompt.stratum, prompt.metadata, image_HWC.shape]
        return hashlib.sha256(json.dumps(known).encode() + image_HWC.tobytes()).hexdigest()

    def _read(self, key: str) -> Scores | None:
        """Cached scores [1]; None if there are none or they are not valid, so that the image is scored again."""
        if self.kept is None:
            return None
        try:
            row = self.kept.execute("SELECT scores FROM scores WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            content = parse_json(row[0], "a cached score")
            rewards = as_numbers([content["reward"]], 1)
            metrics = {name: as_numbers([value], 1) for name, value in content["metrics"].items()}
            details = as_details(content["details"], 1, self.name == JUDGED)
            found = blanked(Scores(rewards, metrics, details), self.headline)
            (reward,) = rows_of(self, found)[REWARD]
            # The comparison is false for NaN too: a failure is tried again.
            return found if self.lowest_reward <= reward <= 1 else None
        except sqlite3.Error as error:
            self._forget(error)
        except (BenchError, KeyError, TypeError, ValueError, AttributeError):
            pass
        return None

    def _write(self, key: str, scores: Scores) -> None:
        """Keep one image's scores, unless the file cannot be written."""
        if self.forgets or self.kept is None:
            return
        metrics = {name: plain(values)[0] for name, values in scores.metrics.items()}
        content = {"reward": plain(scores.rewards)[0], "metrics": metrics, "details": scores.details}
        try:
            with self.kept:
                self.kept.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, json.dumps(content)))
        except sqlite3.Error as error:
            self._forget(error)


def _read_only(path: Path) -> sqlite3.Connection | None:
    """A connection that only reads; None if the file cannot be opened even so."""
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=WAIT_S, uri=True)
    except sqlite3.Error:
        return None


def _row(scores: Scores, i: int) -> Scores:
    """The scores of one image, with arrays of length 1."""
    metrics = {name: values[i : i + 1] for name, values in scores.metrics.items()}
    return Scores(scores.rewards[i : i + 1], metrics, scores.details[i : i + 1])
