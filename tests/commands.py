"""`bench` in processes of their own, as a user starts it, without the seconds that every process needs to import torch: a
server (Python's forkserver) imports it once and forks a process for each command."""

import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import report.style
from tests.few import few_prompts

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "peft", "diffusers.models.transformers.transformer_sd3", "scipy.stats", "bench.training.execute", "bench.cli.app", "report.style"]
)
TIMEOUT_S = 300
IDLE_S = 0.12
"""Processor time of the work of `slowness` on a quick core that nothing else uses, for which bounds are meant."""
FEW = False
"""Whether commands see few held-out prompts per task; the fixture `few_prompts` of tests/conftest.py sets it."""


class Command:
    """`bench WORDS`, started in a folder; what `subprocess.Popen` has, as far as tests use it.

    `before(*arguments)` is called in its process first (a function of a module); it is the leader of a new session.
    """

    def __init__(
        self,
        words: list[str],
        folder: Path | None = None,
        before: Callable[..., None] | None = None,
        arguments: tuple = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.words = words
        self._place = tempfile.TemporaryDirectory()
        self._paths = [Path(self._place.name) / name for name in ("stdout", "stderr")]
        given = (words, folder, FEW, before, arguments, dict(environment or {}), *self._paths)
        self._process = SERVER.Process(target=_command, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's number, which is also its group's."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same, as a method."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To this process alone."""
        os.kill(self.pid, number)

    def communicate(self, timeout: float = TIMEOUT_S) -> tuple[str, str]:
        """What it said to standard output and error, once it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.words, timeout)
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in self._paths]
        return texts[0], texts[1]

    def completed(self, timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess:
        """The same as one object."""
        out, err = self.communicate(timeout)
        return subprocess.CompletedProcess(self.words, self.returncode, out, err)


def bench(
    words: list[str],
    folder: Path | None = None,
    before: Callable[..., None] | None = None,
    arguments: tuple = (),
) -> subprocess.CompletedProcess:
    """Run `bench WORDS` in a folder until it ends."""
    return Command(words, folder, before, arguments).completed()


def free_port() -> int:
    """A port that nothing listens on, and that the system gives to nobody who asks for any free one.

    Tests run side by side, and each process of a group asks for ports: one from the system's own range (on Linux 32768
    and above) may be given to another group before ours listens on it.
    """
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as free:
            try:
                free.bind(("", port))
            except OSError:
                continue
        return port
    raise AssertionError("none of 100 ports is free")


def environments(processes: int) -> list[dict[str, str]]:
    """What a launcher sets for each of several processes on this machine."""
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [shared | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]


def together(
    words: list[str],
    folder: Path,
    before: Callable[..., None] | None = None,
    arguments: tuple = (),
    processes: int = 2,
) -> list[subprocess.CompletedProcess]:
    """The same command in several processes that a launcher would have started."""
    started = [Command(words, folder, before, arguments, environment) for environment in environments(processes)]
    return [command.completed() for command in started]


def alone(test: str, folder: Path) -> subprocess.CompletedProcess:
    """One test of this suite, by its node id, in a process of its own."""
    return Command([], folder, _run_test, (test,)).completed()


def computed_s() -> float:
    """Processor time of the processes that this one has waited for: unlike seconds of the clock, nearly the same on a busy
    machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def slowness() -> float:
    """How many times as much processor time a fixed piece of work takes here and now as on a quick, idle core; at least 1.

    Cores that others use as well are slower, and not by as much every day: CI has had twice the time for the same work.
    """
    before = time.thread_time()
    for _ in range(20):
        json.loads(json.dumps([{"row": i, "value": i / 7, "text": str(i)} for i in range(5000)]))
        np.sort(np.cos(np.arange(200_000.0)))
    return max(1.0, (time.thread_time() - before) / IDLE_S)


def _run_test(test: str) -> None:
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    sys.exit(pytest.main(["-n", "0", "-p", "no:cacheprovider", test]))


def _command(
    words: list[str],
    folder: Path | None,
    few: bool,
    before: Callable[..., None] | None,
    arguments: tuple,
    environment: dict[str, str],
    *paths: Path,
) -> None:
    """What the process does."""
    os.setsid()
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, handler)  # tests may be run in the background, or by nohup
    for stream, path in zip((sys.stdout, sys.stderr), paths):
        stream.flush()
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    report.style.FONT_TYPE = 3  # as tests/report/conftest.py
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as tests/conftest.py hides GPUs; nothing has asked for them yet
    os.environ.update(environment)
    if folder:
        os.chdir(folder)
    if few:
        few_prompts()
    if before:
        before(*arguments)
    from bench.cli.app import main

    sys.argv = ["bench", *words]
    main()
