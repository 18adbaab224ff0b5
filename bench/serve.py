"""`bench serve`: a task's scorer behind HTTP (protocol: bench/remote.py)."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from threading import Lock

import torch

from bench.devices import best_device
from bench.errors import UsageError, one_line
from bench.loading import load_task
from bench.registry import task_names
from bench.remote import PROTOCOL, decode, plain
from bench.scoring import score_each, stacked
from bench.task import Prompt, Scores, Task
from bench.view import view_settings

LARGEST = 2**30
"""Bytes of one request: a thousand pictures of 512 pixels."""


def serve(task_name: str, overrides: list[str], world: str, host: str, port: int) -> None:
    """Answer until interrupted. Raises UsageError for what does not exist or an address that cannot be had."""
    (name,) = task_names([task_name])
    view = view_settings(overrides, (name,), ("scorers",), world)
    task = load_task(name, world, view.scorers.get(name), best_device())
    print(f"{task.scorer_name}", flush=True)
    try:
        server = server_for(task, host, port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port}: {one_line(error)}") from error
    print(f"use it: --set scorers.{name}.url=http://{host}:{server.server_port}", flush=True)
    with server:
        server.serve_forever()


def server_for(task: Task, host: str, port: int) -> ThreadingHTTPServer:
    """A server for one task; port 0 takes any that is free. One request is scored at a time."""
    turn = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"protocol": PROTOCOL, "scorer": task.scorer_name})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.path != "/score" or not 0 < length <= LARGEST:
                self._answer(404 if self.path != "/score" else 413, {"error": "POST /score with a JSON body"})
                return
            try:
                asked = json.loads(self.rfile.read(length))
                prompts = [Prompt(p["text"], p.get("stratum", ""), p.get("metadata", {})) for p in asked["prompts"]]
                images = [decode(text) for text in asked["images"]]
                if len(images) != len(prompts) or not images:
                    raise ValueError(f"{len(images)} pictures and {len(prompts)} prompts")
            except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
                self._answer(400, {"error": f"no request of this protocol: {one_line(error)}"})
                return
            try:
                with turn:
                    scores = score_sizes(task, images, prompts)
            except Exception as error:  # out of memory, a scorer's own: the client is told, the server goes on
                self._answer(500, {"error": f"{type(error).__name__}: {one_line(error)}"})
                return
            metrics = {name: plain(values) for name, values in scores.metrics.items()}
            self._answer(200, {"rewards": plain(scores.rewards), "metrics": metrics, "details": scores.details})

        def _answer(self, status: int, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a line a batch is noise."""

    return ThreadingHTTPServer((host, port), Handler)


def score_sizes(task: Task, images: list[torch.Tensor], prompts: list[Prompt]) -> Scores:
    """Score pictures [3, H, W] of any sizes; those of one size that follow each other share a batch."""
    parts, start = [], 0
    for _, same in groupby(images, key=lambda image: image.shape):
        batch = torch.stack(list(same))
        parts.append(score_each(task, batch, prompts[start : start + len(batch)]))
        start += len(batch)
    return stacked(parts)
