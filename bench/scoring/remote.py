"""Scoring over HTTP, so that a scorer can run on a different machine, GPU or Python installation than the run.

Protocol version 1, JSON throughout:

- GET URL/ returns {"protocol": 1, "scorer": NAME}. NAME identifies the engine, its version and its weights.
- POST URL/score takes {"images": [base64 PNG, ...], "prompts": [{"text": ..., "stratum": ..., "metadata": {...}}, ...]}
  and returns {"rewards": [...], "metrics": {NAME: [...], ...}, "details": [{...}, ...]} with one entry per image.
- Rewards are in [0, 1], or lower if the task's published reward is. null marks an image that could not be scored;
  "failure" in its details may give the reason. Metrics and details are optional, and no metric is named "reward".
- GenEval's details may contain "correct" (true or false), "reason" (text) and "details" (an object) as its evaluator
  writes them. Correctness itself is reported by the metric "official".
- Redirects are not followed.
"""

from __future__ import annotations

import base64
import io
import json
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis.metric_names import REWARD
from bench.api.scores import Collected, Unscorable, cause_of
from bench.api.task import Prompt, Scores, Task, TaskAround
from bench.errors import BenchError, one_line
from bench.scoring.client import JsonClient
from bench.scoring.folders import JUDGED, is_verdict
from bench.scoring.pictures import LARGEST, from_file, to_bytes

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOL = 1
PICTURES, PIXELS = 16, 2 * LARGEST
"""Most images, and most pixels of them together, in one request."""


class RemoteTask(TaskAround):
    """A task whose images are scored by the server at `url`; `inner` provides everything else."""

    def __init__(self, inner: Task, url: str):
        super().__init__(inner)
        setting = f"scorers.{inner.name}.url"
        cure = f"start it with bench serve {inner.name}, or correct {setting}"
        self.client = JsonClient(url, setting, cure)
        self.url = self.client.url

    @property
    def elsewhere(self) -> bool:
        """True: requests wait for another process."""
        return True

    @cached_property
    def scorer_name(self) -> str:
        """The name that the server gives. Raises BenchError for a different protocol, and as `score` does."""
        answer = self.client.ask("/", None)
        name = answer.get("scorer")
        if answer.get("protocol") != PROTOCOL or not isinstance(name, str):
            raise BenchError(f"{self.url} does not speak scoring protocol {PROTOCOL}: it returned {str(answer)[:200]}")
        return name

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """Scores [B] from the server, requested in parts. Raises BenchError with its answer, MissingError if none."""
        if not self.client.met:
            self.client.ask("/", None)  # fails after FIRST_S rather than TIMEOUT_S if no server runs
        pixels = images_BCHW[0, 0].numel()
        size = max(1, min(PICTURES, PIXELS // pixels))
        found = Collected()
        for i in range(0, len(prompts), size):
            part = prompts[i : i + size]
            try:
                found.parts.append(self._part(images_BCHW[i : i + size], part))
            except Unscorable as error:
                found.lose(len(part), error)
        whole = found.whole()
        assert whole is not None  # there is at least one image: indexing the first one did not fail
        return whole

    def _part(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """Score in one request. Raises Unscorable if the server scores none of the images and names no metrics."""
        count = len(prompts)
        entries = [{"text": p.text, "stratum": p.stratum, "metadata": p.metadata} for p in prompts]
        answer = self.client.ask("/score", {"images": encode(images_BCHW), "prompts": entries})
        try:
            rewards = as_numbers(answer["rewards"], count)
            metrics = {name: as_numbers(values, count) for name, values in answer.get("metrics", {}).items()}
            details = as_details(answer.get("details", []), count, self.name == JUDGED)
            if REWARD in metrics:
                raise ValueError(f"a metric is named {REWARD!r}, which is reserved for the reward itself")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(f"{self.url}/score returned invalid scores: {one_line(error)}") from error
        if ((rewards < self.lowest_reward) | (rewards > 1)).any():
            raise BenchError(f"{self.url}/score returned a reward outside [{self.lowest_reward:g}, 1]")
        if np.isnan(rewards).all() and not metrics:
            raise Unscorable(cause_of(details) or f"{self.url} returned no score for any image")
        return Scores(rewards, metrics, details)


def encode(images_BCHW: Tensor) -> list[str]:
    """Images [B, 3, H, W] in [0, 1] as base64 PNG."""
    from PIL import Image

    found = []
    for image in to_bytes(images_BCHW):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return found


def decode(text: str, most: int = LARGEST) -> Tensor:
    """A base64 image file as [3, H, W] in [0, 1].

    Raises TooLargeError for more than `most` pixels, ValueError or OSError if it is not a readable image.
    """
    content = base64.b64decode(text, validate=True)
    return from_file(io.BytesIO(content), most)


def as_numbers(values: list, count: int) -> np.ndarray:
    """A JSON list of `count` numbers as float64 [count], null as NaN. Raises ValueError or TypeError otherwise."""
    if not isinstance(values, list) or any(isinstance(value, str | bool) for value in values):
        raise TypeError(f"not a list of numbers: {str(values)[:100]}")
    try:
        floats = [np.nan if value is None else float(value) for value in values]
        found = np.array(floats, np.float64)
    except OverflowError as error:
        raise ValueError("a number is too large") from error
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers for {count} images")
    if np.isinf(found).any():
        raise ValueError("a number is infinite")
    return found


def as_details(values: list, count: int, judged: bool = False) -> list[dict]:
    """Check a JSON list of `count` objects, which may also be empty, and return it.

    `judged`: also check the entries that GenEval's evaluator writes. Raises ValueError or TypeError if a check fails.
    """
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise TypeError("details are not a list of objects")
    if len(values) not in (0, count):
        raise ValueError(f"{len(values)} details for {count} images")
    for value in values if judged else []:
        if not is_verdict(value.get("correct", False)):
            raise ValueError(f"'correct' should be true or false, not {json.dumps(value['correct'])[:60]}")
        expected = (("reason", str, "text"), ("details", dict, "an object"))
        for key, kind, called in expected:
            if not isinstance(value.get(key, kind()), kind):
                raise TypeError(f"{key!r} of details should be {called}, not {json.dumps(value[key])[:60]}")
    return values


def plain(values: np.ndarray) -> list:
    """Numbers [N] as a list for JSON, NaN as null."""
    return [None if np.isnan(value) else float(value) for value in values]
