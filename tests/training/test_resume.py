"""Kill -9 at chosen moments, run the same command again: the records are bit-identical to an uninterrupted run's."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from bench.registry import find, registered
from tests.commands import bench
from tests.folders import data, needs_data, shared
from tests.once import once

pytestmark = pytest.mark.usefixtures("few_prompts")

RL = ["params.groups=2", "params.group_size=4", "params.nft.timesteps=1"]
SETTINGS = {
    "opd_analytic": ["params.trajectories=4"],
    "opd_ppo": ["params.trajectories=4", "params.inner_updates=2"],
    "sft": ["params.trajectories=4", "params.levels=2"],
    "flow_matching": ["params.batch=4"],
    "offline_dpo": ["params.batch=4"],
    "dance_opd": ["params.trajectories=4"],
    "off_policy": ["params.trajectories=4"],
    "draft_k": ["params.trajectories=4", "params.last=2"],
    "refl": ["params.trajectories=4"],
    "single_task": RL,
    "multi_reward": RL,
    "cascade": [*RL, "params.anchor=previous"],
    "opd_reward": RL,
    "self_opd": ["params.trajectories=4", "params.branches=2", "params.steps=1"],
    "multi_reward crd": [*RL[:2], "params.engine=crd", "params.crd.timesteps=1"],
    "opd_reward drawn": [*RL, "params.preference=drawn", "params.divisions=1"],
    "multi_reward grpo": [
        *RL[:2], "params.engine=grpo", "params.grpo.window.size=2", "sampler.kernel=cps", "sampler.eta=0.8"
    ],
    "multi_reward full": [*RL, "full_finetuning=true"],
    "merge": ["params.rule=dare_ties"],
}  # fmt: skip
"""Method, or method and what is tried with it -> settings."""
TASKS_OF = dict.fromkeys(("cascade", "merge", "opd_reward drawn"), "ocr,geneval") | dict.fromkeys(("draft_k", "refl"), "pickscore")
COMMON = ["evaluation.steps=2"]
TRAINING = ["budget.updates=6", "checkpoint_every=2", "evaluation.points=[0.5]", "ema.every=2"]


def dies(moment: str, count: int) -> None:
    """Let this process kill itself at a moment, the count-th time that it comes."""
    import bench.backbones.adapters as adapters
    import bench.store.run as store

    watched = "evaluations.jsonl" if moment == "torn_evaluation" else "metrics.jsonl"
    write, append = store.write_atomic, store.Run.append
    seen = 0

    def due() -> bool:
        nonlocal seen
        seen += 1
        return seen == count

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half_written(path: Path, data: bytes) -> None:
        if path.name == "checkpoint.safetensors" and due():
            path.with_name(".checkpoint.safetensors.tmp").write_bytes(data[: len(data) // 2])
            die()
        write(path, data)

    def after_checkpoint(path: Path, data: bytes) -> None:
        write(path, data)
        if path.name == "checkpoint.safetensors" and due():
            die()

    def half_adapter(path: Path, data: bytes) -> None:
        path.with_name(f".{path.name}.tmp").write_bytes(data[: len(data) // 2])
        die()

    def torn(self: store.Run, log: str, row: dict) -> None:
        if log == watched and due():
            with (self.folder / log).open("a") as file:
                file.write('{"step": 99, "lo')
            die()
        append(self, log, row)

    def before_summary(path: Path, data: bytes) -> None:
        if path.name == "summary.json":
            die()
        write(path, data)

    if moment in ("torn_line", "torn_evaluation"):
        store.Run.append = torn
    elif moment == "half_adapter":
        adapters.write_atomic = half_adapter
    else:
        moments = {"half_written": half_written, "after_checkpoint": after_checkpoint, "before_summary": before_summary}
        store.write_atomic = moments[moment]


def command(name: str, root: Path, pictures: Path) -> list[str]:
    method = name.partition(" ")[0]
    settings = COMMON + SETTINGS[name] + (TRAINING if find("method", method).trains else [])
    if needs_data(method):
        settings += data(pictures, ("ocr",))
    sets = [part for setting in settings for part in ("--set", setting)]
    tasks = TASKS_OF.get(name, TASKS_OF.get(method, "ocr"))
    return ["run", "--method", method, "--tasks", tasks, "--results", str(root), *sets]


def records(root: Path) -> dict:
    """Everything that must be equal: all but the clocks, the paths and the times of day."""
    (folder,) = (p for p in root.iterdir() if p.name != "cache")
    (weights,) = (*folder.glob("adapter/adapter_model.safetensors"), *folder.glob("model/*.safetensors"))
    log = folder / "metrics.jsonl"
    metrics = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for row in metrics:
        row.pop("seconds")
    summary = json.loads((folder / "summary.json").read_text())
    summary["cost"].pop("seconds")
    summary["cost"].pop("peak_bytes")
    # The base's and the teachers' evaluations are charged to whoever makes them first.
    summary["cost"]["evaluations"].pop("references", None)
    return {
        "metrics": metrics,
        "evaluations": (folder / "evaluations.jsonl").read_text(),
        "weights": weights.read_bytes(),
        "summary": summary,
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of the user's pictures."""
    return shared(tmp_path_factory)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, pictures: Path):
    """method -> results folder of a run that nobody disturbed."""

    def make(folder: Path) -> None:
        done = bench(command(folder.name, folder / "results", pictures))
        assert done.returncode == 0, done.stderr

    return lambda method: once(tmp_path_factory, method, make) / "results"


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
    uninterrupted, pictures: Path, tmp_path: Path, method: str, moment: str, count: int
) -> None:
    root, whole = tmp_path / "results", uninterrupted(method)
    if method != "opd_analytic":  # whose base and teachers are evaluated again in every run; others share the results
        shutil.copytree(whole / "cache", root / "cache")
    killed = bench(command(method, root, pictures), before=dies, arguments=(moment, count))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = bench(command(method, root, pictures))
    assert done.returncode == 0, done.stderr
    assert records(root) == records(whole)


def test_every_method_is_resumed_here() -> None:
    assert {name.partition(" ")[0] for name in SETTINGS} == set(registered("method"))
