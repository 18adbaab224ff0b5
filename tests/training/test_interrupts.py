"""Real signals to real processes: a run finishes its update, checkpoints, says how to go on, and goes on bit-identically."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.jobs.launches import launches
from bench.jobs.status import survey
from tests.commands import Command, bench
from tests.training.test_resume import SETTINGS, records

pytestmark = pytest.mark.usefixtures("few_prompts")

LONG = ["checkpoint_every=1000", "evaluation.points=[]", "evaluation.steps=1", "lora.rank=4"]
PATIENCE_S = 240


def command(method: str, root: Path, *extra: str, updates: int = 14) -> list[str]:
    settings = [*LONG, f"budget.updates={updates}", *SETTINGS[method], "evaluation.split=validation"]
    sets = [part for setting in settings for part in ("--set", setting)]
    words = ["run", "--method", method, "--tasks", "ocr", "--results", str(root), *sets, *extra]
    return words


def lines_of(root: Path) -> int:
    return sum(log.read_bytes().count(b"\n") for log in root.glob("*/metrics.jsonl"))


def wait_until(true, process: Command) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def gets(update: int, *signals: int) -> None:
    """Let signals come to this process in the middle of an update.

    It sends them itself: another process might be kept waiting until the update has ended, or both signals have become one.
    """
    from bench.training.loop import Loop

    backward, due = Loop._backward, list(signals)

    def amid(self: Loop, *given: object) -> dict[str, float]:
        while due and self.step + 1 == update:
            signal.raise_signal(due.pop(0))
        return backward(self, *given)

    Loop._backward = amid


def interrupted(words: list[str], update: int, *signals: int) -> tuple[int, str]:
    """Exit code and stderr of a command that gets signals during an update."""
    done = bench(words, None, gets, (update, *signals))
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["opd_analytic", "opd_ppo", "single_task"])
def test_an_interrupted_run_goes_on_bit_identically(tmp_path: Path, method: str) -> None:
    """At updates that no checkpoint was due at, by the keyboard's signal, a scheduler's, and a closed terminal's."""
    whole, stopped = tmp_path / "whole" / "results", tmp_path / "stopped" / "results"
    assert bench(command(method, whole)).returncode == 0
    for update, number in ((3, signal.SIGINT), (6, signal.SIGTERM), (9, signal.SIGHUP)):
        code, said = interrupted(command(method, stopped), update, number)
        assert code == 130, said
        assert "Traceback" not in said
        assert said.count("rerun the command to resume") == 1
        (line,) = survey(stopped)
        assert (line.state, line.note) == ("stopped", "rerun the command to resume")
        assert (stopped / line.name / "checkpoint.safetensors").exists()
        assert f"stopped after update {update}" in said
        assert lines_of(stopped) == update
    assert bench(command(method, stopped)).returncode == 0
    assert records(stopped) == records(whole)


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    root = tmp_path / "results"
    code, said = interrupted(command("opd_analytic", root), 2, signal.SIGINT, signal.SIGINT)
    assert code == 130, said
    assert "Traceback" not in said
    assert said.count("rerun the command to resume from the last checkpoint") == 1
    assert lines_of(root) == 1
    assert [line.state for line in survey(root)] == ["stopped"]
    assert not list(root.rglob("*.tmp"))


@pytest.mark.slow
def test_an_interrupt_while_loading_is_one_line(tmp_path: Path) -> None:
    root = tmp_path / "results"
    process = Command(command("opd_analytic", root))
    wait_until(lambda: any(root.glob("*/lock")), process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.count("rerun the command to resume") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_local_jobs_stop_with_their_command(tmp_path: Path, number: int) -> None:
    """The terminal sends its signals to all processes of the command; SIGTERM comes to one."""
    root = tmp_path / "results"
    process = Command(command("opd_analytic", root, "--executor", "local", updates=2000))
    wait_until(lambda: lines_of(root) >= 3, process)
    process.send_signal(number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.count("rerun the command to resume") == 1
    (line,) = survey(root)
    assert (line.state, line.note) == ("stopped", "cancelled")
    assert (root / line.name / "checkpoint.safetensors").exists()
    (launch,) = launches(root)
    assert launch.told(launch.jobs[0])["outcome"] == "stopped"
    assert not json.loads((root / line.name / "spec.json").read_text()).get("error")


@pytest.mark.alone
def test_what_is_ignored_stays_ignored_and_handlers_come_back() -> None:
    from bench.system.interrupts import stopping

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stopping() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGTERM)
        assert asked()
        signal.raise_signal(signal.SIGINT)  # another signal asks for the same
        with pytest.raises(KeyboardInterrupt, match="at once"):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before[0])


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_sigterm_is_an_interrupt_in_every_command(number: int, monkeypatch, capsys) -> None:
    """What has been computed is printed, in one line more it is said why there is no more."""
    from bench.cli import evaluate as evaluation_command
    from bench.cli.app import main
    from bench.system import interrupts

    monkeypatch.setattr(interrupts, "_without_terminal", lambda: None)  # the streams are the tests'
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    honest, before = evaluation_command.evaluate, signal.getsignal(signal.SIGTERM)

    def evaluate(backbone, task, *given, **more):
        if task.name == "ocr":
            signal.raise_signal(number)
        return honest(backbone, task, *given, **more)

    monkeypatch.setattr(evaluation_command, "evaluate", evaluate)
    words = ["eval", "--adapter", "base", "--tasks", "geneval,ocr", "--steps", "1", "--split", "validation"]
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    assert stop.value.code == 130
    assert shown.err.endswith("interrupted\n") and "Traceback" not in shown.err
    assert "strict" in shown.out
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


@pytest.mark.alone
def test_sigterm_is_left_to_who_has_it_and_runs_take_it_after_their_update() -> None:
    from bench.jobs.dispatch import undisturbed
    from bench.system.interrupts import stopping, terminated_is_interrupted

    before, came = signal.getsignal(signal.SIGTERM), []
    with terminated_is_interrupted():
        with stopping() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert asked()
            with pytest.raises(KeyboardInterrupt, match="at once"):
                signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), undisturbed():
            signal.raise_signal(signal.SIGTERM)
            came.append("submitted")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert came == ["submitted"]
    signal.signal(signal.SIGTERM, lambda *_: came.append("a job's"))
    try:
        with terminated_is_interrupted(), stopping() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert not asked()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == ["submitted", "a job's"]


@pytest.mark.alone
def test_a_closed_terminal_is_an_interrupt_that_may_come_twice() -> None:
    """From the shell and from the system. What nohup ignores stays ignored."""
    from bench.jobs.dispatch import undisturbed
    from bench.system.interrupts import held_back, hung_up, stopping, terminated_is_interrupted

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with terminated_is_interrupted():
            with stopping() as asked:
                for _ in range(2):
                    signal.raise_signal(signal.SIGHUP)
                    assert asked()
            with pytest.raises(KeyboardInterrupt), undisturbed():
                signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is hung_up
            with pytest.raises(KeyboardInterrupt), held_back():
                signal.raise_signal(signal.SIGHUP)
                blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            assert signal.SIGHUP in blocked  # by jobs that are started meanwhile too
            signal.raise_signal(signal.SIGHUP)  # what is still to be done is done
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with terminated_is_interrupted(), stopping() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


HANGS_UP = """
import os, signal, sys
from bench.system.interrupts import terminated_is_interrupted
os.setsid()
master, slave = os.openpty()
for number in (1, 2):
    os.dup2(slave, number)
os.close(slave)
stopped = 0
try:
    with terminated_is_interrupted():
        os.close(master)
        try:
            print("x", flush=True)
        except OSError:
            stopped += 1
        os.kill(os.getpid(), signal.SIGHUP)
except KeyboardInterrupt:
    print("said", file=sys.stderr, flush=True)
    stopped += 1
os._exit(stopped)
"""


def test_what_is_said_after_the_terminal_has_gone_fails_nothing() -> None:
    hangs_up = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{HANGS_UP}"
    assert subprocess.run([sys.executable, "-c", hangs_up], timeout=60).returncode == 2


def test_a_stop_is_taken_between_batches_of_an_evaluation(tmp_path: Path, monkeypatch) -> None:
    """The checkpoint is there already; the run evaluates again, and ends as if nothing had been."""
    from contextlib import nullcontext

    from bench.config.resolve import resolve
    from bench.errors import Interrupted
    from bench.training import execute as module
    from bench.training.execute import Session, execute
    from tasks.ocr.task import Ocr

    settings = ["budget.updates=2", "evaluation.points=[0.5]", "evaluation.batch=4", "evaluation.split=validation"]
    spec = resolve("opd_analytic", ["ocr"], overrides=[*settings, "params.trajectories=2", "evaluation.steps=1"])
    execute(spec, Session(tmp_path / "whole"))
    scored, honest = [], Ocr.score
    monkeypatch.setattr(Ocr, "score", lambda self, *given: scored.append(1) or honest(self, *given))
    with monkeypatch.context() as patch:
        # After the picture that is scored before training, and two batches.
        patch.setattr(module, "stopping", lambda: nullcontext(lambda: len(scored) >= 3))
        with pytest.raises(Interrupted, match="stopped after update 1"):
            execute(spec, Session(tmp_path / "stopped"))
    assert len(scored) == 3
    execute(spec, Session(tmp_path / "stopped"))
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")


def test_a_loop_stops_where_any_process_was_asked(tmp_path: Path) -> None:
    """All processes of a run leave at the same update, or those that stayed would wait for ever."""
    from types import SimpleNamespace

    from bench.errors import Interrupted
    from bench.training.loop import Loop

    saved = []
    loop = SimpleNamespace(
        workers=SimpleNamespace(gather=lambda mine: [mine, True]), stop_requested=lambda: False, step=3,
        _save=lambda: saved.append(3),
    )  # fmt: skip
    with pytest.raises(Interrupted, match="after update 3"):
        Loop._stop_if_asked(loop)
    assert saved == [3]
