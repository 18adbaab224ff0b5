"""Trackers get what the records have, once each, also after a kill, and change nothing in the run."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from safetensors.torch import load_file

from bench.config.resolve import resolve
from bench.config.trackers import check_trackers
from bench.errors import MissingError
from bench.store.run import Run
from bench.training.tracking import Mirror, mirrored

SHORT = [
    "--set", "evaluation.steps=1", "--set", "evaluation.split=validation", "--set", "checkpoint_every=4",
    "--set", "evaluation.pictures=true", "--set", "scorers.features.model=none",
]  # fmt: skip
BOTH = ["--set", "trackers=[tensorboard,wandb]"]


def command(root: Path, *words: str) -> list[str]:
    start = [sys.executable, "-m", "bench", "run", "--method", "opd_analytic", "--tasks", "ocr", *SHORT, *words]
    return [*start, "--results", str(root)]


def environment() -> dict[str, str]:
    return os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}


def carried_out(root: Path, *words: str) -> Path:
    done = subprocess.run(command(root, *words), capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return next(root.glob("opd_analytic-*-s0"))


def of_tensorboard(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of every point, in all files of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    found.Reload()
    points = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    return points | {tag: [(e.step, 0.0) for e in found.Images(tag)] for tag in found.Tags()["images"]}


def of_wandb(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from the offline files, which hold records in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    points: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        data, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            if not kind:  # the rest of a block of 32 kB
                at += -at % 32768 or 7
                continue
            record += data[at + 7 : at + 7 + length]
            at += 7 + length
            if 32768 - at % 32768 < 7:
                at += -at % 32768
            if kind in (1, 4):  # whole, or the last part
                message = Record.FromString(record)
                record = b""
                for item in message.history.item:
                    value = json.loads(item.value_json)
                    name = item.key or "/".join(item.nested_key)
                    if isinstance(value, int | float) and not name.startswith("_"):
                        points.setdefault(name, []).append((message.history.step.num, value))
    return points


def recorded(run: Path) -> dict[str, list[tuple[int, float]]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {key: [(row["step"], row[key]) for row in rows] for key in ("loss/ocr", "grad_norm", "lr")}


def check_points(points: dict[str, list[tuple[int, float]]], run: Path) -> None:
    for name, wanted in recorded(run).items():
        assert [step for step, _ in points[name]] == [step for step, _ in wanted], name
        assert [value for _, value in points[name]] == pytest.approx([value for _, value in wanted], rel=1e-6), name
    evaluated = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [step for step, _ in points["evaluation/score/ocr"]] == [row["step"] for row in evaluated]
    exact = [sum(row["rows"]["exact"]) / len(row["rows"]["exact"]) for row in evaluated]
    assert [value for _, value in points["evaluation/exact/ocr"]] == pytest.approx(exact)


def test_two_trackers_have_the_records_and_the_run_has_the_same_bits(tmp_path: Path) -> None:
    words = ("--set", "budget.updates=6")
    tracked = carried_out(tmp_path / "a" / "results", *words, *BOTH)
    alone = carried_out(tmp_path / "b" / "results", *words)
    assert tracked.name == alone.name and not (alone / "tracked.jsonl").exists()
    for name in ("adapter/adapter_model.safetensors", "checkpoint.safetensors"):
        mine, theirs = load_file(tracked / name), load_file(alone / name)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert (tracked / "evaluations.jsonl").read_text() == (alone / "evaluations.jsonl").read_text()
    shown = of_tensorboard(tracked)
    check_points(shown, tracked)
    check_points(of_wandb(tracked), tracked)
    assert {step for step, _ in shown["images/ocr"]} == {3, 6}
    assert len(list(tracked.glob("wandb/offline-run-*/files/media/images/images/*.png"))) == 2 * 8


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_curves_without_doubling_a_point(tmp_path: Path) -> None:
    root, words = tmp_path / "results", ("--set", "budget.updates=40", *BOTH)
    process = subprocess.Popen(command(root, *words), stderr=subprocess.PIPE, env=environment())
    end = time.monotonic() + 240
    done = 0
    while done < 10 and process.poll() is None and time.monotonic() < end:
        logs = list(root.glob("opd_analytic-*/metrics.jsonl"))
        done = len(logs[0].read_text().splitlines()) if logs else 0
        time.sleep(0.02)
    assert done >= 10
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    run = carried_out(root, *words)
    assert len((run / "provenance.jsonl").read_text().splitlines()) == 2
    sent = [json.loads(line) for line in (run / "tracked.jsonl").read_text().splitlines()]
    assert sum("identities" in row for row in sent) == 1  # the same run for wandb
    for kept, points in (("at once", of_tensorboard(run)), ("buffered", of_wandb(run))):
        for name, wanted in recorded(run).items():
            steps = Counter(step for step, _ in points[name])
            assert set(steps.values()) == {1}, name
            lost = {step for step, _ in wanted} - set(steps)
            # TensorBoard lacks at most the point that was being sent, wandb what it had not written when it died too.
            assert len(lost) <= 1 and all(step >= done for step in lost) if kept == "at once" else max(lost) <= done + 5


def test_a_run_that_is_asked_to_stop_leaves_complete_curves(tmp_path: Path) -> None:
    root, words = tmp_path / "results", ("--set", "budget.updates=40", *BOTH)
    process = subprocess.Popen(command(root, *words), stderr=subprocess.PIPE, env=environment())
    started_s = time.monotonic()
    while not list(root.glob("opd_analytic-*/metrics.jsonl")) and time.monotonic() < started_s + 120:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    run = carried_out(root, *words)
    assert len((run / "provenance.jsonl").read_text().splitlines()) == 2
    for points in (of_tensorboard(run), of_wandb(run)):
        check_points(points, run)


def a_run(tmp_path: Path, tracker: str = "tensorboard") -> Run:
    spec = resolve("sft", ["ocr"], overrides=[f"trackers={tracker}"])
    run = Run(tmp_path / "results", spec, "f")
    run.folder.mkdir(parents=True)
    return run


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    run, said = a_run(tmp_path), []
    mirror = Mirror(run, said.append)

    def fail(*_, **__) -> None:
        raise ConnectionError("no network")

    mirror.trackers["tensorboard"].log = fail
    run.append("metrics.jsonl", {"step": 1, "loss/ocr": 0.5})
    mirror.send()
    run.append("metrics.jsonl", {"step": 2, "loss/ocr": 0.25})
    mirror.send()
    mirror.close()
    assert said == ["note: the tracker 'tensorboard' failed and gets nothing more: no network"]


class Strict:
    """An mlflow that refuses names as the real one does (mlflow 3.17, `log_metrics`)."""

    active_run = SimpleNamespace(info=SimpleNamespace(run_id="7"))

    def __init__(self, **_) -> None:
        self.points: dict[str, float] = {}

    def log(self, values: dict[str, float], step: int) -> None:
        for name in values:
            if not re.fullmatch(r"[/\w.\- :]*", name, re.ASCII):
                raise ValueError(f"Invalid value {name!r}")
        self.points |= values

    def start(self) -> None: ...
    def finish(self) -> None: ...
    def store_init_configuration(self, values: dict) -> None: ...


def test_mlflow_gets_names_that_it_takes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mlflow", Strict)
    run, said = a_run(tmp_path, "mlflow"), []
    mirror = Mirror(run, said.append)
    row = {"task": "ocr", "headline": "exact", "strata": ["", ""], "rows": {"exact": [1, 0], "diversity@micro-codec-1": [2, 4]}}
    run.append("evaluations.jsonl", {"step": 1, "share": 0.5} | row)
    mirror.send()
    points = mirror.trackers["mlflow"].points
    assert points["evaluation/diversity_micro-codec-1/ocr"] == 3 and points["evaluation/score/ocr"] == 0.5
    mirror.close()
    assert not said


def test_a_tracker_that_comes_later_gets_the_earlier_rows_too(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.append("tracked.jsonl", {"identities": {"wandb": "1"}})
    run.append("tracked.jsonl", {"step": 1, "task": "", "to": ["wandb"]})
    for step in (1, 2):
        run.append("metrics.jsonl", {"step": step, "loss/ocr": 0.5 / step})
    with mirrored(run, True, print):
        pass
    assert of_tensorboard(run.folder)["loss/ocr"] == [(1, 0.5), (2, 0.25)]


def test_rows_are_sent_in_the_order_of_their_steps_and_half_a_line_is_not_sent(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    row = {"task": "ocr", "headline": "exact", "strata": ["", ""], "rows": {"exact": [1.0, 0.0]}}
    sent = []
    with mirrored(run, True, print) as send:
        run.append("metrics.jsonl", {"step": 1, "seconds": {"training": 2.0}})
        run.append("evaluations.jsonl", {"step": 1, "share": 0.5} | row)
        run.append("metrics.jsonl", {"step": 2})
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "lo')
        send()
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write('ss/ocr": 1.5}\n')
    sent = [(r["step"], r["task"]) for r in run.rows("tracked.jsonl") if "step" in r]
    assert sent == [(1, ""), (1, "ocr"), (2, ""), (3, "")]
    points = of_tensorboard(run.folder)
    assert points["seconds/training"] == [(1, 2.0)] and points["evaluation/score/ocr"] == [(1, 0.5)]
    assert points["loss/ocr"] == [(3, 1.5)]


def test_trackers_are_refused_by_name_before_anything_is_loaded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingError, match="'swanlab' is not installed: pip install swanlab"):
        check_trackers(("swanlab",))
    done = subprocess.run(
        command(tmp_path / "results", "--set", "trackers=tensorbord"), capture_output=True, text=True
    )
    assert done.returncode == 2 and "tensorboard" in done.stderr and len(done.stderr.strip().splitlines()) == 1
