"""`bench serve`: serves a task's scorer over HTTP (protocol: bench/scoring/remote.py).

Anyone who reaches the port may send anything. The size of a request, the memory of all requests together and the time
that a client may take are therefore limited. A refused request receives a JSON error.
"""

import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from threading import BoundedSemaphore, Lock
from time import monotonic
from typing import Any

import numpy as np
import torch

from bench.api.scores import Unscorable, score_each, stacked, unscored
from bench.api.task import Prompt, Scores, Task
from bench.config.scorers import view_settings
from bench.errors import DamagedError, UsageError, one_line
from bench.registry import task_name
from bench.scoring.loading import load_task
from bench.scoring.pictures import LARGEST as MOST_PIXELS
from bench.scoring.pictures import TooLargeError
from bench.scoring.remote import PIXELS, PROTOCOL, decode, plain
from bench.system.devices import best_device
from bench.system.files import parse_json

LARGEST = 2**28
"""Largest request in bytes: hundreds of images of 512 x 512 pixels."""
TOGETHER = 2**30
"""Most bytes that all requests received but not yet answered may hold together."""
MOST = 1024
"""Most images in one request."""
CLIENTS = 256
"""Most connections at a time; further clients are refused with a 503."""
RECEIVE_S, SEND_S, DRAIN_S = 120, 30, 2
"""How long a client may take to send its request, to receive the answer, and to notice that it was refused."""
PIECE = 2**18
"""Bytes read from a connection at a time."""


class Gone(Exception):
    """The connection was closed, by the client or because the client took too long."""


class Refusal(Exception):
    """A refused request, with the HTTP status and the reason to answer it with."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def serve(named: str, overrides: list[str], world: str, host: str, port: int) -> None:
    """Serve the scorer of a task until interrupted.

    Raises UsageError for an unknown task or setting, and for an address or port that cannot be used.
    """
    name = task_name(named)
    _check_host(host)
    view = view_settings(overrides, (name,), ("scorers",), world)
    task = load_task(name, world, view.scorers.get(name), best_device())
    print(f"{task.scorer_name}", flush=True)
    try:
        server = server_for(task, host, port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port}: {one_line(error)}") from error
    shown = f"[{host}]" if ":" in host else host
    print(f"use it: --set scorers.{name}.url=http://{shown}:{server.server_port}", flush=True)
    with server:
        server.serve_forever()


def _check_host(host: str) -> None:
    """Raise UsageError for an invalid address, and for an empty one, which would listen on all addresses."""
    if not host.strip():
        raise UsageError("--host is empty; use 0.0.0.0 to listen on all addresses of this machine")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise UsageError(f"--host {host!r} is not a valid address") from error


def server_for(task: Task, host: str, port: int) -> "Server":
    """A server for one task, bound to a port (0: any free one). Requests are scored one at a time."""
    return Server(task, host, port)


Request = socket.socket | tuple[bytes, socket.socket]


class Server(ThreadingHTTPServer):
    """Handles every connection in a thread, with limits on their number, memory and duration."""

    request_queue_size = 128

    def __init__(self, task: Task, host: str, port: int):
        self.task = task
        self.turn = Lock()
        """Held while a request is decoded and scored."""
        self.room = BoundedSemaphore(CLIENTS)
        self.held, self.counting = 0, Lock()
        """Bytes that all requests hold, and the lock for changing the number."""
        self.receiving: dict[socket.socket, float] = {}
        """Connections whose request is not complete -> the time at which they are closed."""
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def process_request(self, request: Request, client_address: Any) -> None:
        """Start a thread for a connection, or refuse it if there are too many."""
        assert isinstance(request, socket.socket)  # a TCP server's requests are sockets; pairs belong to UDP
        if not self.room.acquire(blocking=False):
            refuse(request, 503, f"{CLIENTS} clients are connected; try again later")
            self.shutdown_request(request)
            return
        self.receiving[request] = monotonic() + RECEIVE_S
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no more threads
            self._forget(request)
            raise

    def process_request_thread(self, request: Request, client_address: Any) -> None:
        """Handle a connection in its thread."""
        assert isinstance(request, socket.socket)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: socket.socket) -> None:
        self.receiving.pop(request, None)
        self.room.release()

    def service_actions(self) -> None:
        """Close the connections of clients that take too long; the base class calls this between requests."""
        for request, until in list(self.receiving.items()):
            if monotonic() > until:
                self.receiving.pop(request, None)
                _hang_up(request, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print one line for an error in a handler; clients that hang up are not errors."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            print(f"a request failed: {type(error).__name__}: {one_line(error)}", file=sys.stderr)

    @contextmanager
    def memory(self) -> Iterator["Memory"]:
        """The memory of one request, released at the end."""
        mine = Memory(self)
        try:
            yield mine
        finally:
            with self.counting:
                self.held -= mine.size


class Memory:
    """Bytes of one request, counted as they arrive: announcing a large Content-Length reserves nothing."""

    def __init__(self, server: Server):
        self.server, self.size = server, 0

    def take(self, size: int) -> None:
        """Count more bytes. Raises Refusal if all requests together would hold too much."""
        with self.server.counting:
            if self.server.held + size > TOGETHER:
                raise Refusal(503, f"pending requests hold {TOGETHER:,} bytes; try again later")
            self.server.held += size
            self.size += size


class Handler(BaseHTTPRequestHandler):
    """Answers the one request of a connection."""

    server: Server

    def do_GET(self) -> None:
        """Answer with the protocol version and the scorer's name."""
        self._answered(lambda: {"protocol": PROTOCOL, "scorer": self.server.task.scorer_name})

    def do_POST(self) -> None:
        """Answer with the scores of the images in the request."""
        with self.server.memory() as memory:
            self._answered(lambda: self._score(memory))

    def _score(self, memory: Memory) -> dict:
        """Read and score a request. Raises Refusal if it is not valid."""
        if self.path != "/score":
            raise Refusal(404, "POST /score with a JSON body")
        body = self._body(length_of(self.headers), memory)
        # Decoding needs the lock too: decoded images are much larger than the request.
        with self.server.turn:
            images, prompts = understood(body)
            check_prompts(self.server.task, prompts)
            scores = score_sizes(self.server.task, images, prompts)
        metrics = {name: plain(values) for name, values in scores.metrics.items()}
        return {"rewards": plain(scores.rewards), "metrics": metrics, "details": scores.details}

    def _body(self, length: int, memory: Memory) -> bytearray:
        """Receive the request's body. Raises Gone if the connection breaks, Refusal if the body is too short."""
        body = bytearray()
        while len(body) < length:
            missing = length - len(body)
            try:
                piece = self.rfile.read1(min(PIECE, missing))
            except OSError as error:
                raise Gone from error
            if not piece:
                raise Refusal(400, f"the body ends after {len(body):,} of {length:,} bytes")
            memory.take(len(piece))
            body += piece
        self.server.receiving.pop(self.connection, None)
        return body

    def _answered(self, answer: Any) -> None:
        """Send what `answer` returns, or the error that it raises."""
        try:
            status, body = 200, json.dumps(answer()).encode()
        except Refusal as error:
            status, body = error.status, _error(str(error))
        except Gone:
            self.close_connection = True
            return
        except Exception as error:  # a scorer may raise anything: the client is told and the server keeps running
            status, body = 500, _error(f"{type(error).__name__}: {one_line(error)}")
        self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
        """Send an answer and close the connection."""
        self.server.receiving.pop(self.connection, None)
        self.connection.settimeout(SEND_S)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True
        if status != 200:
            drain(self.connection)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses (not HTTP, too long a line, another verb) with a JSON error."""
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"  # HTTP/0.9 has no status line
        self._send(code, _error(message or "refused"))

    def log_message(self, *_: object) -> None:
        """Log nothing: one line per batch would be noise."""


def length_of(headers: Any) -> int:
    """The length of a request's body in bytes. Raises Refusal if it is missing, not a number or too large."""
    given = headers.get_all("Content-Length") or []
    if headers.get("Transfer-Encoding") or not given:
        raise Refusal(411, "Content-Length is required; chunked bodies are not accepted")
    # Several different lengths would let a proxy and this server disagree on where the request ends.
    if len(set(given)) > 1 or not re.fullmatch("[0-9]+", given[0].strip()):
        raise Refusal(400, f"Content-Length {', '.join(given)[:100]!r} is not a number of bytes")
    # Digits are counted before they are converted: int() of a very long number is slow, or an error.
    digits = given[0].strip().lstrip("0")
    if len(digits) > len(str(LARGEST)) or int(digits or 0) > LARGEST:
        raise Refusal(413, f"the request is larger than {LARGEST:,} bytes; send fewer images")
    if not digits:
        raise Refusal(400, "the body is empty: POST /score with a JSON body")
    return int(digits)


def understood(body: bytes | bytearray) -> tuple[list[torch.Tensor], list[Prompt]]:
    """Images [3, H, W] and prompts of a request. Raises Refusal if they are not valid or too many."""
    try:
        request = parse_json(body.decode(), "the body")
    except (DamagedError, UnicodeDecodeError) as error:
        raise Refusal(400, f"invalid request: {one_line(error)}") from error
    if not isinstance(request, dict):
        raise Refusal(400, "invalid request: the body must be a JSON object")
    prompts, images = request.get("prompts"), request.get("images")
    texts = isinstance(images, list) and all(isinstance(image, str) for image in images)
    if not isinstance(prompts, list) or not isinstance(images, list) or not texts:
        raise Refusal(400, "invalid request: 'images' must be a list of text, 'prompts' a list of objects")
    if len(images) != len(prompts) or not images:
        raise Refusal(400, f"invalid request: {len(images)} images and {len(prompts)} prompts")
    if len(images) > MOST:
        raise Refusal(413, f"more than {MOST} images in one request")
    return _decoded(images), [_prompt(i, entry) for i, entry in enumerate(prompts)]


def check_prompts(task: Task, prompts: list[Prompt]) -> None:
    """Raise Refusal, naming the prompt's index, if the task cannot score a prompt."""
    for index, prompt in enumerate(prompts):
        try:
            task.check(prompt)
        except UsageError as error:
            raise Refusal(400, f"prompt {index}: {one_line(error)}") from error


def _prompt(i: int, entry: Any) -> Prompt:
    """The prompt in an entry of a request. Raises Refusal if the entry is not valid."""
    if not isinstance(entry, dict):
        raise Refusal(400, f"prompt {i} must be an object")
    text = entry.get("text")
    stratum = entry.get("stratum", "")
    metadata = entry.get("metadata", {})
    if not isinstance(text, str) or not isinstance(stratum, str) or not isinstance(metadata, dict):
        raise Refusal(400, f"prompt {i}: 'text' and 'stratum' must be text, 'metadata' an object")
    return Prompt(text, stratum, metadata)


def _decoded(encoded: list[str]) -> list[torch.Tensor]:
    """The images of a request. Raises Refusal for one that is not readable, or too many pixels in total."""
    images: list[torch.Tensor] = []
    left = PIXELS
    for i, text in enumerate(encoded):
        try:
            images.append(decode(text, min(left, MOST_PIXELS)))
        except TooLargeError as error:
            raise Refusal(413, f"image {i}: {error}; at most {PIXELS:,} in one request") from error
        except (ValueError, OSError) as error:
            raise Refusal(400, f"image {i} is not readable: {one_line(error)}") from error
        left -= images[-1][0].numel()
    return images


def refuse(connection: socket.socket, status: int, reason: str) -> None:
    """Send an error without reading the request; gives up if the client does not accept it within a second."""
    body = _error(reason)
    head = f"HTTP/1.0 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with suppress(OSError):
        connection.settimeout(1)
        connection.sendall(head.encode() + body)


def drain(connection: socket.socket) -> None:
    """Read and discard what a refused client still sends.

    If the connection were closed while the client is sending, the client would see a broken connection, not the reason.
    """
    _hang_up(connection, socket.SHUT_WR)
    until = monotonic() + DRAIN_S
    with suppress(OSError):
        connection.settimeout(DRAIN_S)
        while monotonic() < until and connection.recv(PIECE):
            pass


def _hang_up(connection: socket.socket, how: int) -> None:
    """Shut down one or both directions of a connection, which may be closed already."""
    with suppress(OSError):
        connection.shutdown(how)


def _error(reason: str) -> bytes:
    return json.dumps({"error": reason}).encode()


def score_sizes(task: Task, images: list[torch.Tensor], prompts: list[Prompt]) -> Scores:
    """Score images [3, H, W] of any sizes; consecutive images of the same size share a batch.

    Images that the scorer cannot score are NaN, with the reason in their details. If none can be scored, there are no
    metrics.
    """
    parts: list[Scores | Unscorable] = []
    sizes: list[int] = []
    for _, same in groupby(images, key=lambda image: image.shape):
        batch = torch.stack(list(same))
        start = sum(sizes)
        sizes.append(len(batch))
        try:
            parts.append(score_each(task, batch, prompts[start : start + len(batch)]))
        except Unscorable as error:
            parts.append(error)
    # Failed batches get the metrics of a batch that was scored, so that all can be stacked.
    good = next((part for part in parts if isinstance(part, Scores)), Scores(np.zeros(0), {}))
    whole = []
    for part, size in zip(parts, sizes):
        scores = part if isinstance(part, Scores) else unscored(good, size, one_line(part))
        whole.append(scores)
    return stacked(whole)
