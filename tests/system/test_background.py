"""Work in a thread: its results, its errors, and how it ends with the command."""

import subprocess
import sys
import threading

import pytest
import torch

from bench.errors import BenchError
from bench.system.background import Background, finish


def test_pieces_are_done_in_order_and_errors_raised_where_results_are_asked_for() -> None:
    go = threading.Event()
    work = Background([lambda: go.wait(60), lambda: torch.is_grad_enabled(), threading.current_thread])
    go.set()
    waited, gradients, thread = work.results()
    assert waited and not gradients and thread is not threading.current_thread()
    assert work.results()[0]  # asking again gives the same

    def fails() -> None:
        raise BenchError("no")

    with pytest.raises(BenchError, match="no"):
        Background([fails, fails]).results()
    assert not Background.running


def test_finishing_waits_for_the_piece_under_way_and_begins_no_other() -> None:
    begun, go, done = threading.Event(), threading.Event(), []

    def piece() -> None:
        begun.set()
        go.wait(60)
        done.append(1)

    Background([piece, piece])
    begun.wait(60)
    threading.Timer(0.2, go.set).start()
    finish()
    assert done == [1]
    assert not Background.running


ENDS = """
import sys, torch
from bench.errors import BenchError, exit_on_error
from bench.cli import app
from bench.system.background import Background
def command(words):
    x = torch.randn(600, 600)
    def piece():
        for _ in range(100):
            x @ x
    Background([piece] * 1000)
    raise BenchError("something else failed")
app.invoke = command
app.main()
"""


def test_a_command_that_fails_meanwhile_keeps_its_exit_code() -> None:
    """Python would abort a process that ended while a thread was inside torch."""
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: something else failed\n")
