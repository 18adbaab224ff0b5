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
import http.client
import io
import ipaddress
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from functools import cached_property
from http.client import HTTPMessage
from time import sleep
from typing import IO, TYPE_CHECKING

import numpy as np

from bench.analysis.metric_names import REWARD
from bench.api.scores import Collected, Unscorable, cause_of
from bench.api.task import Prompt, Scores, Task, TaskAround
from bench.config.scorers import check_url
from bench.errors import BenchError, DamagedError, MissingError, one_line
from bench.scoring.folders import JUDGED, is_verdict
from bench.scoring.pictures import LARGEST, from_file, to_bytes
from bench.system.files import parse_json

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOL = 1
TIMEOUT_S, FIRST_S = 600, 30
"""Timeouts of an answer and of the first one: scoring may load weights, but a server says immediately that it runs."""
PAUSES_S = (1, 5, 20, 60)
"""Pauses before asking a server again that is busy or restarting."""
BUSY = (429, 502, 503, 504)
"""HTTP statuses after which a request is repeated."""
REDIRECTED = (301, 302, 303, 307, 308)
PICTURES, PIXELS = 16, 2 * LARGEST
"""Most images, and most pixels of them together, in one request."""
ANSWER = 2**28
"""Largest answer that is read, in bytes."""


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: urllib would ask the new address without the images and accept whatever it returns."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> None:
        """Do nothing, so that the default handler raises HTTPError."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class RemoteTask(TaskAround):
    """A task whose images are scored by the server at `url`; `inner` provides everything else.

    Servers on this machine are contacted without a proxy. A server that has answered before may be restarting, and
    requests to it are repeated; one that has never answered is an error immediately.
    """

    def __init__(self, inner: Task, url: str):
        super().__init__(inner)
        check_url(url, inner.name)
        self.url = url.rstrip("/")
        self.proxy = _proxy(url)
        handlers = [] if self.proxy else [urllib.request.ProxyHandler({})]
        self.opener = urllib.request.build_opener(_NoRedirections, *handlers)
        self.met = False
        """Whether the server has ever answered."""

    @property
    def elsewhere(self) -> bool:
        """True: requests wait for another process."""
        return True

    @cached_property
    def scorer_name(self) -> str:
        """The name that the server gives. Raises BenchError for a different protocol, and as `score` does."""
        answer = self._ask("/", None)
        name = answer.get("scorer")
        if answer.get("protocol") != PROTOCOL or not isinstance(name, str):
            raise BenchError(f"{self.url} does not speak scoring protocol {PROTOCOL}: it returned {str(answer)[:200]}")
        return name

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """Scores [B] from the server, requested in parts. Raises BenchError with its answer, MissingError if none."""
        if not self.met:
            self._ask("/", None)  # fails after FIRST_S rather than TIMEOUT_S if no server runs
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
        answer = self._ask("/score", {"images": encode(images_BCHW), "prompts": entries})
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

    def _ask(self, path: str, content: dict | None) -> dict:
        """Send a request, repeatedly if the server is busy. Raises BenchError with its answer, MissingError if none."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        cause = ""
        for pause in (0, *PAUSES_S):
            sleep(pause)
            timeout = TIMEOUT_S if self.met else FIRST_S
            try:
                with self.opener.open(request, timeout=timeout) as answer:
                    return self._understood(path, answer.read(ANSWER + 1))
            except urllib.error.HTTPError as error:
                if error.code in REDIRECTED:
                    raise BenchError(self._redirection(path, error)) from error
                text = _beginning(error)
                page = _page(text)
                cause = f"{error.code}: {page or ' '.join(text.split())}"
                # "Busy" as a web page comes from a proxy: it is believed only if the scorer has answered before.
                if error.code not in BUSY or (page and not self.met):
                    raise BenchError(f"{self.url}{path} answered {cause}{self._way}") from error
                self.met = True
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                # urllib wraps the socket's error in URLError.
                inner = getattr(error, "reason", error) if isinstance(error, OSError) else error
                cause = one_line(inner)
                if not self.met:
                    break
        raise MissingError(
            f"no scorer answers at {self.url} ({cause}){self._way}: start it with bench serve {self.name}, or correct "
            f"scorers.{self.name}.url"
        )

    def _understood(self, path: str, body: bytes) -> dict:
        """The JSON object in an answer. Raises BenchError for anything else, such as a proxy's login page."""
        text = body.decode(errors="replace")
        if len(body) > ANSWER:
            raise BenchError(f"{self.url}{path} returned more than {ANSWER:,} bytes{self._way}")
        try:
            found = parse_json(text, f"the answer of {self.url}{path}")
        except DamagedError as error:
            cause = _page(text) or one_line(error.__cause__ or error)
            raise BenchError(f"{self.url}{path} did not return JSON: {cause}{self._way}") from error
        if not isinstance(found, dict):
            kind = type(found).__name__
            raise BenchError(f"{self.url}{path} returned JSON of type {kind}, not an object{self._way}")
        self.met = True
        return found

    def _redirection(self, path: str, error: urllib.error.HTTPError) -> str:
        """The error message for a redirect, naming its target."""
        location = error.headers.get("Location", "")
        try:
            target = urllib.parse.urlsplit(urllib.parse.urljoin(self.url + path, location))
            # Passwords and keys in the address are not shown.
            host = target.netloc.rpartition("@")[2]
            bare = target._replace(netloc=host, query="", fragment="").geturl()
        except ValueError:
            bare = "an invalid address"
        shown = one_line(ValueError(bare[:200]))
        return (
            f"{self.url}{path} answered {error.code}, a redirect to {shown}, which is not followed{self._way}: set "
            f"scorers.{self.name}.url to the scorer's own address"
        )

    @property
    def _way(self) -> str:
        """The proxy that requests go through and how to bypass it, for messages; empty without a proxy."""
        if not self.proxy:
            return ""
        return f", reached through the proxy {self.proxy} (to bypass it, add {_host(self.url)} to no_proxy)"


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or ""


def _proxy(url: str) -> str | None:
    """The proxy that the environment sets for an address, without its password; None for addresses on this machine."""
    host = _host(url)
    try:
        address = ipaddress.ip_address(host)
        here = address.is_loopback or address.is_unspecified
    except ValueError:
        here = host == "localhost" or host.endswith(".localhost")
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if here or not proxy or urllib.request.proxy_bypass(parts.netloc):
        return None
    address_only = proxy.rpartition("@")[2].rpartition("//")[2]
    return f"{address_only} from {parts.scheme}_proxy"


def _beginning(error: urllib.error.HTTPError) -> str:
    """The first bytes of an error's body; the reason phrase if there is no readable body."""
    try:
        return error.read(500).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason


def _page(text: str) -> str | None:
    """A description of an answer that is a web page; None for any other answer."""
    if not text.lstrip().startswith("<"):
        return None
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.DOTALL | re.IGNORECASE)
    named = f" {' '.join(title[1].split())[:80]!r}" if title else ""
    return f"a web page{named} from another service or a proxy (a login page?)"


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
