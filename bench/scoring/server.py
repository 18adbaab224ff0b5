"""`bench serve`: a task's scorer behind HTTP (protocol: bench/scoring/remote.py).

Whoever reaches the port may send anything: what a request may hold, what all of them hold together, and how long a
client may take are limited, and what is refused is refused with a JSON error.
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
"""Bytes of one request: hundreds of pictures of 512 pixels."""
TOGETHER = 2**30
"""Bytes that the requests of all clients may have sent and still wait with."""
MOST = 1024
"""Pictures in one request."""
CLIENTS = 256
"""Connections that are looked at together; another is told to come again."""
RECEIVE_S, SEND_S, DRAIN_S = 120, 30, 2
"""How long a client may take for its request, to take the answer, and to notice that it was refused."""
PIECE = 2**18


class Gone(Exception):
    """The client has hung up, or was hung up on."""


class Refusal(Exception):
    """A request that is answered with a status and a reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


def serve(named: str, overrides: list[str], world: str, host: str, port: int) -> None:
    """Answer until interrupted. Raises UsageError for what does not exist or an address that cannot be had."""
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
    """Raise UsageError for text that no address is, and for none at all, which would be every address there is."""
    if not host.strip():
        raise UsageError("--host is empty; 0.0.0.0 listens on all addresses of this machine")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise UsageError(f"--host {host!r} is no address") from error


def server_for(task: Task, host: str, port: int) -> "Server":
    """A server for one task; port 0 takes any that is free. One request is scored at a time."""
    return Server(task, host, port)


Request = socket.socket | tuple[bytes, socket.socket]


class Server(ThreadingHTTPServer):
    """Connections in threads, no more than CLIENTS of them, none for longer than it may take."""

    request_queue_size = 128

    def __init__(self, task: Task, host: str, port: int):
        self.task, self.turn = task, Lock()
        self.room = BoundedSemaphore(CLIENTS)
        self.held, self.counting = 0, Lock()
        self.receiving: dict[socket.socket, float] = {}
        """Connections whose request is not there yet -> when they have had their time."""
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def process_request(self, request: Request, client_address: Any) -> None:
        assert isinstance(request, socket.socket)  # as of every stream; pairs are of datagrams
        if not self.room.acquire(blocking=False):
            refuse(request, 503, f"{CLIENTS} clients are connected; come again")
            self.shutdown_request(request)
            return
        self.receiving[request] = monotonic() + RECEIVE_S
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads to be had
            self._forget(request)
            raise

    def process_request_thread(self, request: Request, client_address: Any) -> None:
        assert isinstance(request, socket.socket)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: socket.socket) -> None:
        self.receiving.pop(request, None)
        self.room.release()

    def service_actions(self) -> None:
        """Between requests: hang up on clients that take too long, by the byte or altogether."""
        for request, until in list(self.receiving.items()):
            if monotonic() > until:
                self.receiving.pop(request, None)
                _hang_up(request, socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is nobody's fault; anything else is one line."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            print(f"a request failed: {type(error).__name__}: {one_line(error)}", file=sys.stderr)

    @contextmanager
    def memory(self) -> Iterator["Memory"]:
        """What one request holds of the room for all; given back at the end."""
        mine = Memory(self)
        try:
            yield mine
        finally:
            with self.counting:
                self.held -= mine.size


class Memory:
    """Bytes of one request, counted as they come: a claim alone takes no room."""

    def __init__(self, server: Server):
        self.server, self.size = server, 0

    def take(self, size: int) -> None:
        """Raises Refusal if all requests together would hold too much."""
        with self.server.counting:
            if self.server.held + size > TOGETHER:
                raise Refusal(503, f"requests hold {TOGETHER:,} bytes; come again")
            self.server.held += size
            self.size += size


class Handler(BaseHTTPRequestHandler):
    """One connection, one request."""

    server: Server

    def do_GET(self) -> None:
        self._answered(lambda: {"protocol": PROTOCOL, "scorer": self.server.task.scorer_name})

    def do_POST(self) -> None:
        with self.server.memory() as memory:
            self._answered(lambda: self._score(memory))

    def _score(self, memory: Memory) -> dict:
        if self.path != "/score":
            raise Refusal(404, "POST /score with a JSON body")
        body = self._body(length_of(self.headers), memory)
        with self.server.turn:  # one at a time in memory as pictures, too
            images, prompts = understood(body)
            check_prompts(self.server.task, prompts)
            scores = score_sizes(self.server.task, images, prompts)
        metrics = {name: plain(values) for name, values in scores.metrics.items()}
        return {"rewards": plain(scores.rewards), "metrics": metrics, "details": scores.details}

    def _body(self, length: int, memory: Memory) -> bytearray:
        body = bytearray()
        while len(body) < length:
            try:
                piece = self.rfile.read1(min(PIECE, length - len(body)))
            except OSError as error:
                raise Gone from error
            if not piece:
                raise Refusal(400, f"the body ends after {len(body):,} of {length:,} bytes")
            memory.take(len(piece))
            body += piece
        self.server.receiving.pop(self.connection, None)
        return body

    def _answered(self, answer: Any) -> None:
        """Answer with what `answer` returns, or with why it does not."""
        try:
            status, body = 200, json.dumps(answer()).encode()
        except Refusal as error:
            status, body = error.status, _error(str(error))
        except Gone:
            self.close_connection = True
            return
        except Exception as error:  # out of memory, a scorer's own: the client is told, the server goes on
            status, body = 500, _error(f"{type(error).__name__}: {one_line(error)}")
        self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
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
        """What the library refuses by itself (no HTTP, too long a line, another verb), as JSON."""
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"  # so that the status line is sent
        self._send(code, _error(message or "refused"))

    def log_message(self, *_: object) -> None:
        """Say nothing: a line a batch is noise."""


def length_of(headers: Any) -> int:
    """Bytes of a request's body. Raises Refusal for a length that is absent, no number or too large."""
    given = headers.get_all("Content-Length") or []
    if headers.get("Transfer-Encoding") or not given:
        raise Refusal(411, "say the body's Content-Length; pieces are not taken")
    if len(set(given)) > 1 or not re.fullmatch("[0-9]+", given[0].strip()):
        raise Refusal(400, f"Content-Length {', '.join(given)[:100]!r} is no number of bytes")
    digits = given[0].strip().lstrip("0")
    if len(digits) > len(str(LARGEST)) or int(digits or 0) > LARGEST:
        raise Refusal(413, f"at most {LARGEST:,} bytes a request")
    if not digits:
        raise Refusal(400, "the body is empty: POST /score with a JSON body")
    return int(digits)


def understood(body: bytes | bytearray) -> tuple[list[torch.Tensor], list[Prompt]]:
    """Pictures and prompts of a request. Raises Refusal for what is none, or asks too much."""
    try:
        asked = parse_json(body.decode(), "the body")
    except (DamagedError, UnicodeDecodeError) as error:
        raise Refusal(400, f"no request of this protocol: {one_line(error)}") from error
    if not isinstance(asked, dict):
        raise Refusal(400, "no request of this protocol: the body is to be a JSON object")
    told, pictures = asked.get("prompts"), asked.get("images")
    if not isinstance(told, list) or not isinstance(pictures, list) or not all(isinstance(p, str) for p in pictures):
        raise Refusal(400, "no request of this protocol: 'images' is to be a list of text, 'prompts' a list of objects")
    if len(pictures) != len(told) or not pictures:
        raise Refusal(400, f"no request of this protocol: {len(pictures)} pictures and {len(told)} prompts")
    if len(pictures) > MOST:
        raise Refusal(413, f"at most {MOST} pictures a request")
    return _decoded(pictures), [_prompt(i, one) for i, one in enumerate(told)]


def check_prompts(task: Task, prompts: list[Prompt]) -> None:
    """Raise Refusal, saying which, for a prompt that the task cannot score."""
    for place, prompt in enumerate(prompts):
        try:
            task.check(prompt)
        except UsageError as error:
            raise Refusal(400, f"prompt {place}: {one_line(error)}") from error


def _prompt(i: int, told: Any) -> Prompt:
    if not isinstance(told, dict):
        raise Refusal(400, f"prompt {i} is to be an object")
    text, stratum, metadata = told.get("text"), told.get("stratum", ""), told.get("metadata", {})
    if not isinstance(text, str) or not isinstance(stratum, str) or not isinstance(metadata, dict):
        raise Refusal(400, f"prompt {i}: 'text' and 'stratum' are to be text, 'metadata' an object")
    return Prompt(text, stratum, metadata)


def _decoded(pictures: list[str]) -> list[torch.Tensor]:
    images: list[torch.Tensor] = []
    left = PIXELS
    for i, text in enumerate(pictures):
        try:
            images.append(decode(text, min(left, MOST_PIXELS)))
        except TooLargeError as error:
            raise Refusal(413, f"picture {i}: {error}; at most {PIXELS:,} in one request") from error
        except (ValueError, OSError) as error:
            raise Refusal(400, f"picture {i} is none that can be scored: {one_line(error)}") from error
        left -= images[-1][0].numel()
    return images


def refuse(connection: socket.socket, status: int, reason: str) -> None:
    """Answer at once, whatever is asked; a client that does not take it is left."""
    body = _error(reason)
    head = f"HTTP/1.0 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with suppress(OSError):
        connection.settimeout(1)
        connection.sendall(head.encode() + body)


def drain(connection: socket.socket) -> None:
    """Take, and forget, what a refused client still sends: it would not read the refusal over a broken connection."""
    _hang_up(connection, socket.SHUT_WR)
    until = monotonic() + DRAIN_S
    with suppress(OSError):
        connection.settimeout(DRAIN_S)
        while monotonic() < until and connection.recv(PIECE):
            pass


def _hang_up(connection: socket.socket, how: int) -> None:
    with suppress(OSError):
        connection.shutdown(how)


def _error(reason: str) -> bytes:
    return json.dumps({"error": reason}).encode()


def score_sizes(task: Task, images: list[torch.Tensor], prompts: list[Prompt]) -> Scores:
    """Score pictures [3, H, W] of any sizes; those of one size that follow each other share a batch.

    Pictures that the scorer cannot take are NaN, with the reason in their details; where that goes for all of them,
    there are no metrics.
    """
    parts: list[Scores | Unscorable] = []
    sizes: list[int] = []
    for _, same in groupby(images, key=lambda image: image.shape):
        batch, start = torch.stack(list(same)), sum(sizes)
        sizes.append(len(batch))
        try:
            parts.append(score_each(task, batch, prompts[start : start + len(batch)]))
        except Unscorable as error:
            parts.append(error)
    good = next((part for part in parts if isinstance(part, Scores)), Scores(np.zeros(0), {}))
    return stacked([
        part if isinstance(part, Scores) else unscored(good, size, one_line(part)) for part, size in zip(parts, sizes)
    ])  # fmt: skip
