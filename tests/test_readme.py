"""The README's examples are run as they stand: a method under 80 lines, a task under 60, every bench command."""

import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import bench.registry as registry
from bench.api.task import Prompt
from bench.config.resolve import resolve
from bench.scoring.folders import write
from bench.scoring.loading import load_task
from bench.training.execute import Session, execute
from tests.commands import bench

README = (Path(__file__).parent.parent / "README.md").read_text()


def example(name: str) -> str:
    match = re.search(rf"```python\n# {re.escape(name)}\n(.*?)```", README, re.S)
    assert match, f"README has no example {name}"
    return match[1]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """register(kind, file, class): write one of README's examples as an importable file and give it an entry point."""
    real, added = registry.entry_points, []
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [*real(group=group), *(p for p in added if p.group == group)]
    )
    monkeypatch.syspath_prepend(tmp_path)

    def add(kind: str, file: str, name: str) -> None:
        module = Path(file).stem
        (tmp_path / f"{module}.py").write_text(example(file))
        monkeypatch.delitem(sys.modules, module, raising=False)
        added.append(EntryPoint(module, f"{module}:{name}", registry.GROUPS[kind]))
        registry._points.cache_clear()

    yield add
    registry._points.cache_clear()


def test_example_method_runs(register, tmp_path: Path) -> None:
    assert len(example("my_package/imitate.py").splitlines()) < 80
    register("method", "my_package/imitate.py", "Imitate")
    spec = resolve("imitate", ["ocr"], overrides=["budget.updates=2", "evaluation.steps=2", "params.pictures=4"])
    summary = execute(spec, Session(tmp_path / "results"))
    assert summary["updates"] == 2


def test_example_task_runs(register, tmp_path: Path) -> None:
    assert len(example("my_package/darkness.py").splitlines()) < 60
    register("task", "my_package/darkness.py", "Darkness")
    overrides = ["budget.updates=2", "evaluation.steps=2", "params.groups=2", "params.group_size=2"]
    summary = execute(resolve("single_task", ["darkness"], overrides=overrides), Session(tmp_path / "results"))
    assert 0 <= summary["models"]["student"]["darkness"]["rows"]["reward"][0] <= 1


def test_the_slurm_profile_is_one() -> None:
    import yaml

    from bench.jobs.placement import Profile

    text = re.search(r"```yaml\n# gpu\.yaml.*?\n(.*?)```", README, re.S)[1]
    assert Profile.model_validate(yaml.safe_load(text)).parameters("a", Path("."), None)["gpus_per_node"] == 1


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("bench ")]


# What turns a command of the README into a smoke run: the same command, less of it.
SHRINK = {
    "run": "--set budget.updates=1 --set evaluation.steps=1 --set evaluation.points=[]",
    "teach": "--set budget.updates=1 --set evaluation.steps=1 --set params.groups=1 --set evaluation.points=[]",
    "eval": "--steps 1 --tasks geneval,pickscore",  # the held-out sign reader takes two minutes
    "compare": "--methods opd_analytic --tasks ocr --budget 100 --seeds 0 --set evaluation.steps=1 --executor inline",
    "probe": "--states 2 --draws 1 --set params.trajectories=2 --tasks ocr,geneval",
}


def shrunk(words: list[str]) -> list[str]:
    """With what makes it small; an option of one value takes the place of the command's own."""
    less = shlex.split(SHRINK.get(words[0], ""))
    for option in {word for word in less if word.startswith("--")} - {"--set"}:
        while option in words:
            at = words.index(option)
            words = [*words[:at], *words[at + 2 :]]
    return words + less


@pytest.fixture(scope="module")
def places(detector_folder: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What stands for the README's capitals."""
    pictures = tmp_path_factory.mktemp("pictures")
    record = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
    write(pictures, [Prompt(record["prompt"], record["tag"], record)], torch.zeros(1, 3, 16, 16), [(0, 0)])
    row = {"tag": "single_object", "prompt": "a photo of a cat", "correct": True}
    (pictures / "results.jsonl").write_text(json.dumps(row) + "\n")
    drawn = tmp_path_factory.mktemp("drawn")
    prompts = load_task("pickscore", "micro").prompts("test")[:1]
    write(drawn, prompts, torch.zeros(1, 3, 32, 32), [(0, 0)])
    return {
        "PICTURES": str(pictures), "DETECTOR": str(detector_folder), "CLIP": str(clip_folder), "PROMPTS": "prompts",
        "DRAWN": str(drawn),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands are run, as by a user: what one evaluated another finds."""
    return tmp_path_factory.mktemp("project")


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_readme_runs(line: str, folder: Path, places: dict[str, str]) -> None:
    line = re.sub(rf"\b({'|'.join(places)})\b", lambda found: places[found[0]], line)
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "eval" and "base" not in words:
        pytest.skip("scores the result of another command")
    if words[0] in ("sweep", "logs", "report") or "slurm" in words:
        pytest.skip("tests/sweeps, tests/slurm and tests/report do this on something small")
    if words[0] == "perf":
        pytest.skip("takes minutes; test_perf.py runs a small one")
    words = shrunk(words)
    if words[0] == "serve":
        command = [sys.executable, "-m", "bench", *words, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
            told = [served.stdout.readline(), served.stdout.readline()]
            served.terminate()
        assert told[1].startswith("use it: --set scorers.clipscore.url=http://127.0.0.1:")
        return
    done = bench(words, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout
