"""Requests to a JSON service over HTTP: repeated while it is busy, never redirected, past a proxy for this machine."""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPMessage
from time import sleep
from typing import IO

from bench.config.scorers import check_url
from bench.errors import BenchError, DamagedError, MissingError, one_line
from bench.masking import MASK
from bench.system.files import parse_json

TIMEOUT_S, FIRST_S = 600, 30
"""Timeouts of an answer and of the first one: scoring may load weights, but a server says immediately that it runs."""
PAUSES_S = (1, 5, 20, 60)
"""Pauses before asking a server again that is busy or restarting."""
LONGEST_S = 600
"""Longest pause that a busy server's Retry-After is granted."""
BUSY = (429, 502, 503, 504)
"""HTTP statuses after which a request is repeated."""
REDIRECTED = (301, 302, 303, 307, 308)
ANSWER = 2**28
"""Largest answer that is read, in bytes."""


class RefusedError(BenchError):
    """The service answered a request with an error status. `code` is the status."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class _NoRedirections(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: urllib would ask the new address without the images and accept whatever it returns."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> None:
        """Do nothing, so that the default handler raises HTTPError."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class JsonClient:
    """Asks the service at `url`, which the setting `setting` names; `cure` says what to do if nothing answers there.

    Services on this machine are contacted without a proxy. A service that has answered before may be restarting, and
    requests to it are repeated; one that has never answered is an error immediately.
    """

    def __init__(self, url: str, setting: str, cure: str, key: str = "", busy: tuple[int, ...] = BUSY):
        """`key` authorises every request and is masked in what the service answers.

        `busy`: HTTP statuses after which a request is repeated.
        """
        check_url(url, setting)
        self.url, self.setting, self.cure, self.key, self.busy = url.rstrip("/"), setting, cure, key, busy
        self.headers = {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        self.proxy = _proxy(url)
        handlers = [] if self.proxy else [urllib.request.ProxyHandler({})]
        self.opener = urllib.request.build_opener(_NoRedirections, *handlers)
        self.met = False
        """Whether the service has ever answered."""

    def ask(self, path: str, content: dict | None, timeout_s: float | None = None) -> dict:
        """Send a request, repeatedly if the server is busy. Raises BenchError with its answer, MissingError if none.

        `timeout_s` None: TIMEOUT_S, or FIRST_S if the service has never answered.
        """
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, self.headers)
        cause, asked_for = "", 0.0
        for pause in (0, *PAUSES_S):
            sleep(max(pause, min(asked_for, LONGEST_S)))
            asked_for = 0.0
            timeout = timeout_s or (TIMEOUT_S if self.met else FIRST_S)
            try:
                with self.opener.open(request, timeout=timeout) as answer:
                    return self._understood(path, answer.read(ANSWER + 1))
            except urllib.error.HTTPError as error:
                if error.code in REDIRECTED:
                    raise BenchError(self._redirection(path, error)) from error
                text = self._masked(_beginning(error))
                page = _page(text)
                cause = f"{error.code}: {page or ' '.join(text.split())}"
                # "Busy" as a web page comes from a proxy: it is believed only if the scorer has answered before.
                if error.code not in self.busy or (page and not self.met):
                    raise RefusedError(f"{self.url}{path} answered {cause}{self._way}", error.code) from error
                self.met = True
                asked_for = _retry_after(error)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                # urllib wraps the socket's error in URLError.
                inner = getattr(error, "reason", error) if isinstance(error, OSError) else error
                cause = one_line(inner)
                if not self.met:
                    break
        raise MissingError(f"no scorer answers at {self.url} ({cause}){self._way}: {self.cure}")

    def _understood(self, path: str, body: bytes) -> dict:
        """The JSON object in an answer. Raises BenchError for anything else, such as a proxy's login page."""
        text = self._masked(body.decode(errors="replace"))
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

    def _masked(self, text: str) -> str:
        """What the service says without the key, which it may repeat in an error or an answer."""
        return text.replace(self.key, MASK) if self.key else text

    def _redirection(self, path: str, error: urllib.error.HTTPError) -> str:
        """The error message for a redirect, naming its target."""
        location = self._masked(error.headers.get("Location", ""))
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
            f"{self.setting} to the scorer's own address"
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


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds until the server wants to be asked again (RFC 9110, 10.2.3: seconds or a date); 0 if it does not say."""
    said = error.headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        then = parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    # A date without a zone is in GMT, as HTTP dates are.
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _page(text: str) -> str | None:
    """A description of an answer that is a web page; None for any other answer."""
    if not text.lstrip().startswith("<"):
        return None
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.DOTALL | re.IGNORECASE)
    named = f" {' '.join(title[1].split())[:80]!r}" if title else ""
    return f"a web page{named} from another service or a proxy (a login page?)"
