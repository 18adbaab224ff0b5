"""Scoring over HTTP, so that a scorer may live on another machine, GPU or Python than the run.

GET URL/ answers {"protocol": 1, "scorer": NAME}, NAME being the engine, version and weights. POST URL/score takes
{"images": [base64 PNG, ...], "prompts": [{"text": ..., "stratum": ..., "metadata": {...}}, ...]} and answers
{"rewards": [...], "metrics": {NAME: [...], ...}, "details": [{...}, ...]}, one entry a picture; rewards lie in [0, 1],
or below it where the task's published reward does, null stands for a picture that could not be scored, metrics and
details may be left out. Everything is JSON.
"""

import base64
import http.client
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from functools import cached_property
from time import sleep

import numpy as np
from torch import Tensor

from bench.errors import BenchError, MissingError, UsageError, one_line
from bench.pictures import from_file, to_bytes
from bench.scoring import stacked
from bench.task import Prompt, Scores, Task, TaskAround

PROTOCOL = 1
TIMEOUT_S = 600
PAUSES_S = (1, 5, 20, 60)
"""A server that is restarting, or busy, is asked again after these."""
BUSY = (429, 502, 503, 504)
PICTURES = 16
"""In one request."""


class RemoteTask(TaskAround):
    """A task whose pictures are scored by the server at `url`."""

    def __init__(self, inner: Task, url: str):
        super().__init__(inner)
        try:
            parts = urllib.parse.urlsplit(url)
            valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        except ValueError:
            valid = False
        if not valid:
            raise UsageError(f"scorers.{inner.name}.url takes an http address, got {url!r}")
        self.url = url.rstrip("/")

    @cached_property
    def scorer_name(self) -> str:
        answer = self._ask("/", None)
        if answer.get("protocol") != PROTOCOL or not isinstance(answer.get("scorer"), str):
            raise BenchError(f"{self.url} does not speak scoring protocol {PROTOCOL}: it answered {str(answer)[:200]}")
        return answer["scorer"]

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        starts = range(0, len(prompts), PICTURES)
        return stacked([self._part(images_BCHW[i : i + PICTURES], prompts[i : i + PICTURES]) for i in starts])

    def _part(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        told = [{"text": p.text, "stratum": p.stratum, "metadata": p.metadata} for p in prompts]
        answer = self._ask("/score", {"images": encode(images_BCHW), "prompts": told})
        try:
            rewards = as_numbers(answer["rewards"], len(prompts))
            metrics = {name: as_numbers(v, len(prompts)) for name, v in answer.get("metrics", {}).items()}
            details = list(answer.get("details", []))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(f"{self.url}/score answered what is no score: {one_line(error)}") from error
        if ((rewards < self.lowest_reward) | (rewards > 1)).any():
            raise BenchError(f"{self.url}/score answered a reward outside [{self.lowest_reward:g}, 1]")
        return Scores(rewards, metrics, details)

    def _ask(self, path: str, content: dict | None) -> dict:
        """One request. Raises BenchError with what the server says, MissingError where there is none."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        for pause in (0, *PAUSES_S):
            sleep(pause)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    found = json.load(answer)
            except urllib.error.HTTPError as error:
                cause = " ".join(error.read(500).decode(errors="replace").split())
                if error.code in BUSY:
                    continue
                raise BenchError(f"{self.url}{path} answered {error.code}: {cause}") from error
            except ValueError as error:
                raise BenchError(f"{self.url}{path} did not answer JSON: {one_line(error)}") from error
            except (OSError, http.client.HTTPException) as error:
                cause = one_line(error)
                continue
            if not isinstance(found, dict):
                raise BenchError(f"{self.url}{path} answered {type(found).__name__}, not an object")
            return found
        raise MissingError(
            f"no scorer answers at {self.url} ({cause}): is it running (bench serve {self.name}), is "
            f"scorers.{self.name}.url right?"
        )


def encode(images_BCHW: Tensor) -> list[str]:
    """Pictures in [0, 1] as base64 PNG."""
    from PIL import Image

    found = []
    for image in to_bytes(images_BCHW):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return found


def decode(text: str) -> Tensor:
    """A base64 picture as [3, H, W] in [0, 1]. Raises ValueError or OSError for anything else."""
    return from_file(io.BytesIO(base64.b64decode(text, validate=True)))


def as_numbers(values: list, count: int) -> np.ndarray:
    """`count` numbers, float64, null as NaN. Raises ValueError or TypeError for anything else."""
    found = np.array([np.nan if value is None else float(value) for value in values], np.float64)
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers for {count} pictures")
    return found


def plain(values: np.ndarray) -> list:
    """Numbers for JSON, NaN as null."""
    return [None if np.isnan(value) else float(value) for value in values]
