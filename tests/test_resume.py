"""Kill -9 at chosen moments, run the same command again: the records are bit-identical to an uninterrupted run's."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.registry import find, registered

RL = ["params.groups=2", "params.group_size=4", "params.nft.timesteps=1"]
SETTINGS = {
    "opd_analytic": ["params.trajectories=4"],
    "opd_ppo": ["params.trajectories=4", "params.inner_updates=2"],
    "sft": ["params.trajectories=4", "params.levels=2"],
    "dance_opd": ["params.trajectories=4"],
    "off_policy": ["params.trajectories=4"],
    "single_task": RL,
    "multi_reward": RL,
    "cascade": [*RL, "params.anchor=previous"],
    "merge": [],
}
COMMON = ["evaluation.steps=2"]
TRAINING = ["budget.updates=6", "checkpoint_every=2", "evaluation.points=[0.5]", "ema.every=2"]

# Runs the command with one function replaced by a version that dies at its n-th call.
KILLER = """
import os, signal, sys
import bench.backbones.adapters as adapters
import bench.store as store
moment, count = sys.argv[1], int(sys.argv[2])
watched = "evaluations.jsonl" if moment == "torn_evaluation" else "metrics.jsonl"
seen = 0
def due():
    global seen
    seen += 1
    return seen == count
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
write, append, replace = store.write_atomic, store.Run.append, os.replace
def half_written(path, data):
    if path.name == "checkpoint.safetensors" and due():
        path.with_name(".checkpoint.safetensors.tmp").write_bytes(data[: len(data) // 2])
        die()
    write(path, data)
def after_checkpoint(path, data):
    write(path, data)
    if path.name == "checkpoint.safetensors" and due():
        die()
def half_adapter(path, data):
    path.with_name(f".{path.name}.tmp").write_bytes(data[: len(data) // 2])
    die()
def torn_line(self, log, row):
    if log == watched and due():
        with (self.folder / log).open("a") as file:
            file.write('{"step": 99, "lo')
        die()
    append(self, log, row)
def before_summary(path, data):
    if path.name == "summary.json":
        die()
    write(path, data)
if moment in ("torn_line", "torn_evaluation"):
    store.Run.append = torn_line
elif moment == "half_adapter":
    adapters.write_atomic = half_adapter
elif moment != "never":
    store.write_atomic = {"half_written": half_written, "after_checkpoint": after_checkpoint, "before_summary": before_summary}[moment]
from bench.cli import main
sys.argv = ["bench", *sys.argv[3:]]
main()
"""


def command(method: str, root: Path) -> list[str]:
    settings = COMMON + SETTINGS[method] + (TRAINING if find("method", method).trains else [])
    sets = [part for setting in settings for part in ("--set", setting)]
    tasks = "ocr,geneval" if method in ("cascade", "merge") else "ocr"
    return ["run", "--method", method, "--tasks", tasks, "--results", str(root), *sets]


def start(moment: str, count: int, method: str, root: Path) -> subprocess.CompletedProcess:
    arguments = [sys.executable, "-c", KILLER, moment, str(count), *command(method, root)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300)


def records(root: Path) -> dict:
    """Everything that must be equal: all but the clocks, the paths and the times of day."""
    (folder,) = (p for p in root.iterdir() if p.name != "cache")
    log = folder / "metrics.jsonl"
    metrics = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for row in metrics:
        row.pop("seconds")
    summary = json.loads((folder / "summary.json").read_text())
    summary["cost"].pop("seconds")
    # The base's and the teachers' evaluations are charged to whoever makes them first.
    summary["cost"]["evaluations"].pop("references", None)
    return {
        "metrics": metrics,
        "evaluations": (folder / "evaluations.jsonl").read_text(),
        "adapter": (folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        "summary": summary,
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory):
    """method -> records of a run that nobody disturbed."""
    cache: dict[str, dict] = {}

    def get(method: str) -> dict:
        if method not in cache:
            root = tmp_path_factory.mktemp(method) / "results"
            done = start("never", 0, method, root)
            assert done.returncode == 0, done.stderr
            cache[method] = records(root)
        return cache[method]

    return get


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "moment", "count"),
    [
        ("opd_analytic", "half_written", 1),
        ("opd_analytic", "half_written", 3),
        ("opd_analytic", "after_checkpoint", 2),
        ("opd_analytic", "torn_line", 4),
        ("opd_analytic", "half_adapter", 1),
        ("opd_analytic", "before_summary", 1),
        ("single_task", "half_written", 2),
        ("opd_analytic", "torn_evaluation", 2),
        ("single_task", "torn_line", 6),
        ("merge", "torn_evaluation", 2),
        ("merge", "half_adapter", 1),
        *((method, "torn_line", 4) for method in SETTINGS if method not in ("opd_analytic", "single_task", "merge")),
    ],
)
def test_killed_run_resumes_bit_identically(
    uninterrupted, tmp_path: Path, method: str, moment: str, count: int
) -> None:
    root = tmp_path / "results"
    killed = start(moment, count, method, root)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = start("never", 0, method, root)
    assert done.returncode == 0, done.stderr
    assert records(root) == uninterrupted(method)


def test_every_method_is_resumed_here() -> None:
    assert set(SETTINGS) == set(registered("method"))
