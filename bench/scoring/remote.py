"""Scoring over HTTP, so that a scorer may live on another machine, GPU or Python than the run.

GET URL/ answers {"protocol": 1, "scorer": NAME}, NAME being the engine, version and weights. POST URL/score takes
{"images": [base64 PNG, ...], "prompts": [{"text": ..., "stratum": ..., "metadata": {...}}, ...]} and answers
{"rewards": [...], "metrics": {NAME: [...], ...}, "details": [{...}, ...]}, one entry a picture; rewards lie in [0, 1],
or below it where the task's published reward does, null stands for a picture that could not be scored ("failure" in its
details may say why), metrics and details may be left out. No metric is called "reward". GenEval's details may hold
"correct" (true or false), "reason" (text) and "details" (an object) as its evaluator writes them; whether a picture is
correct is what the metric "official" says. Everything is JSON; redirections are not followed.
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

from bench.api.scores import REWARD, Collected, Unscorable, cause_of
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
"""For an answer: a scorer may have to load its weights, but says at once that it is there."""
PAUSES_S = (1, 5, 20, 60)
"""A server that is restarting, or busy, is asked again after these."""
BUSY = (429, 502, 503, 504)
REDIRECTED = (301, 302, 303, 307, 308)
PICTURES, PIXELS = 16, 2 * LARGEST
"""In one request, at most."""
ANSWER = 2**28
"""Bytes of an answer that is still read."""


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    """urllib would ask the new address without the pictures, and take whatever that answers; here it is an error."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> None:
        """Leave it to the next handler."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class RemoteTask(TaskAround):
    """A task whose pictures are scored by the server at `url`.

    A server on this machine is asked without a proxy. One that has answered before may restart and is waited for; one
    that has not is given up at once.
    """

    def __init__(self, inner: Task, url: str):
        super().__init__(inner)
        check_url(url, inner.name)
        self.url = url.rstrip("/")
        self.proxy = _proxy(url)
        handlers = [] if self.proxy else [urllib.request.ProxyHandler({})]
        self.opener = urllib.request.build_opener(_NoRedirections, *handlers)
        self.met = False
        """Whether it has ever answered."""

    @cached_property
    def scorer_name(self) -> str:
        answer = self._ask("/", None)
        if answer.get("protocol") != PROTOCOL or not isinstance(answer.get("scorer"), str):
            raise BenchError(f"{self.url} does not speak scoring protocol {PROTOCOL}: it answered {str(answer)[:200]}")
        return answer["scorer"]

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        if not self.met:
            self._ask("/", None)
        size = max(1, min(PICTURES, PIXELS // images_BCHW[0, 0].numel()))
        found = Collected()
        for i in range(0, len(prompts), size):
            part = prompts[i : i + size]
            try:
                found.parts.append(self._part(images_BCHW[i : i + size], part))
            except Unscorable as error:
                found.lose(len(part), error)
        whole = found.whole()
        assert whole is not None  # there is a picture: the first one's size was asked for
        return whole

    def _part(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """One request. Raises Unscorable where the server scores none of its pictures and names no metrics."""
        told = [{"text": p.text, "stratum": p.stratum, "metadata": p.metadata} for p in prompts]
        answer = self._ask("/score", {"images": encode(images_BCHW), "prompts": told})
        try:
            rewards = as_numbers(answer["rewards"], len(prompts))
            metrics = {name: as_numbers(v, len(prompts)) for name, v in answer.get("metrics", {}).items()}
            details = as_details(answer.get("details", []), len(prompts), self.name == JUDGED)
            if REWARD in metrics:
                raise ValueError(f"a metric is called {REWARD!r}, which the reward itself is called")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(f"{self.url}/score answered what is no score: {one_line(error)}") from error
        if ((rewards < self.lowest_reward) | (rewards > 1)).any():
            raise BenchError(f"{self.url}/score answered a reward outside [{self.lowest_reward:g}, 1]")
        if np.isnan(rewards).all() and not metrics:
            raise Unscorable(cause_of(details) or f"{self.url} gives no picture a score")
        return Scores(rewards, metrics, details)

    def _ask(self, path: str, content: dict | None) -> dict:
        """One request. Raises BenchError with what the server says, MissingError where there is none."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        cause = ""
        for pause in (0, *PAUSES_S):
            sleep(pause)
            try:
                with self.opener.open(request, timeout=TIMEOUT_S if self.met else FIRST_S) as answer:
                    return self._understood(path, answer.read(ANSWER + 1))
            except urllib.error.HTTPError as error:
                if error.code in REDIRECTED:
                    raise BenchError(self._redirection(path, error)) from error
                said = _beginning(error)
                cause = f"{error.code}: {_page(said) or ' '.join(said.split())}"
                if error.code not in BUSY or (_page(said) and not self.met):
                    raise BenchError(f"{self.url}{path} answered {cause}{self._way}") from error
                self.met = True
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                cause = one_line(getattr(error, "reason", error) if isinstance(error, OSError) else error)
                if not self.met:
                    break
        raise MissingError(
            f"no scorer answers at {self.url} ({cause}){self._way}: is it running (bench serve {self.name}), is "
            f"scorers.{self.name}.url right?"
        )

    def _understood(self, path: str, body: bytes) -> dict:
        """The object that an answer holds. Raises BenchError for anything else, a proxy's login page among it."""
        text = body.decode(errors="replace")
        if len(body) > ANSWER:
            raise BenchError(f"{self.url}{path} answered more than {ANSWER:,} bytes{self._way}")
        try:
            found = parse_json(text, f"the answer of {self.url}{path}")
        except DamagedError as error:
            page = f": {page}" if (page := _page(text)) else f": {one_line(error.__cause__ or error)}"
            raise BenchError(f"{self.url}{path} did not answer JSON{page}{self._way}") from error
        if not isinstance(found, dict):
            raise BenchError(f"{self.url}{path} answered {type(found).__name__}, not an object{self._way}")
        self.met = True
        return found

    def _redirection(self, path: str, error: urllib.error.HTTPError) -> str:
        """What is said of an answer that names another address: a picture sent there might be lost, or not ours."""
        try:
            target = urllib.parse.urlsplit(urllib.parse.urljoin(self.url + path, error.headers.get("Location", "")))
            # Without what may be secret: a password, a key.
            bare = target._replace(netloc=target.netloc.rpartition("@")[2], query="", fragment="").geturl()
        except ValueError:
            bare = "what is no address"
        shown = one_line(ValueError(bare[:200]))
        return (
            f"{self.url}{path} answered {error.code}, a redirection to {shown}, which is not followed{self._way}: name "
            f"the scorer's own address in scorers.{self.name}.url"
        )

    @property
    def _way(self) -> str:
        """How it was asked, where that is worth a word."""
        if not self.proxy:
            return ""
        return f", asked through the proxy {self.proxy} (if that is wrong, put {_host(self.url)} into no_proxy)"


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or ""


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for an address, without its password; None for one on this machine."""
    host = _host(url)
    try:
        address = ipaddress.ip_address(host)
        here = address.is_loopback or address.is_unspecified
    except ValueError:
        here = host == "localhost" or host.endswith(".localhost")
    scheme = urllib.parse.urlsplit(url).scheme
    proxy = urllib.request.getproxies().get(scheme)
    if here or not proxy or urllib.request.proxy_bypass(urllib.parse.urlsplit(url).netloc):
        return None
    return f"{proxy.rpartition('@')[2].rpartition('//')[2]} of {scheme}_proxy"


def _beginning(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(500).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return error.reason


def _page(text: str) -> str | None:
    """What to call an answer that is a web page; None for any other."""
    if not text.lstrip().startswith("<"):
        return None
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.DOTALL | re.IGNORECASE)
    named = f" {' '.join(title[1].split())[:80]!r}" if title else ""
    return f"a web page{named}, of another service or a proxy's (a login page?)"


def encode(images_BCHW: Tensor) -> list[str]:
    """Pictures in [0, 1] as base64 PNG."""
    from PIL import Image

    found = []
    for image in to_bytes(images_BCHW):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return found


def decode(text: str, most: int = LARGEST) -> Tensor:
    """A base64 picture as [3, H, W] in [0, 1]. Raises TooLargeError for more than `most` pixels, ValueError or OSError
    for anything else."""
    return from_file(io.BytesIO(base64.b64decode(text, validate=True)), most)


def as_numbers(values: list, count: int) -> np.ndarray:
    """`count` numbers, float64, null as NaN. Raises ValueError or TypeError for anything else."""
    if not isinstance(values, list) or any(isinstance(value, str | bool) for value in values):
        raise TypeError(f"not a list of numbers: {str(values)[:100]}")
    try:
        found = np.array([np.nan if value is None else float(value) for value in values], np.float64)
    except OverflowError as error:
        raise ValueError("a number is too large") from error
    if len(found) != count:
        raise ValueError(f"{len(found)} numbers for {count} pictures")
    if np.isinf(found).any():
        raise ValueError("a number is infinite")
    return found


def as_details(values: list, count: int, judged: bool = False) -> list[dict]:
    """`count` objects, or none at all; of a task whose results are verdicts, also as GenEval's evaluator writes them.

    Raises ValueError or TypeError for anything else.
    """
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise TypeError("details are not a list of objects")
    if len(values) not in (0, count):
        raise ValueError(f"{len(values)} details for {count} pictures")
    for value in values if judged else []:
        if not is_verdict(value.get("correct", False)):
            raise ValueError(f"'correct' should be true or false, not {json.dumps(value['correct'])[:60]}")
        for key, kind, called in (("reason", str, "text"), ("details", dict, "an object")):
            if not isinstance(value.get(key, kind()), kind):
                raise TypeError(f"{key!r} of details should be {called}, not {json.dumps(value[key])[:60]}")
    return values


def plain(values: np.ndarray) -> list:
    """Numbers for JSON, NaN as null."""
    return [None if np.isnan(value) else float(value) for value in values]
