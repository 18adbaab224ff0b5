"""`bench` in a process of its own, as a user starts it, without the seconds that every process needs to import torch: a
server (Python's forkserver) imports it once and forks a process for each command."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.few import few_prompts

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "peft", "diffusers.models.transformers.transformer_sd3", "scipy.stats", "bench.training.execute", "bench.cli.app"]
)
TIMEOUT_S = 300
FEW = False
"""Whether commands see few held-out prompts per task; the fixture `few_prompts` of tests/conftest.py sets it."""


def bench(
    words: list[str],
    folder: Path | None = None,
    before: Callable[..., None] | None = None,
    arguments: tuple = (),
) -> subprocess.CompletedProcess:
    """Run `bench WORDS` in a folder; `before(*arguments)` is called in its process first (a function of a module)."""
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / name for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_command, args=(words, folder, FEW, before, arguments, *paths))
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(words, TIMEOUT_S)
        texts = [path.read_text() if path.exists() else "" for path in paths]
    return subprocess.CompletedProcess(words, process.exitcode, *texts)


def _command(
    words: list[str], folder: Path | None, few: bool, before: Callable[..., None] | None, arguments: tuple, *paths: Path
) -> None:
    for stream, path in zip((sys.stdout, sys.stderr), paths):
        stream.flush()
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as tests/conftest.py hides GPUs; nothing has asked for them yet
    if folder:
        os.chdir(folder)
    if few:
        few_prompts()
    if before:
        before(*arguments)
    from bench.cli.app import main

    sys.argv = ["bench", *words]
    main()
