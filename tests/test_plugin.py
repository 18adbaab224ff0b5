"""A method and a task from another package: built, installed into a fresh environment, found by entry point, run."""

import json
import site
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_readme import example

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "imitate-plugin"
version = "0.1"

[project.entry-points."bench.methods"]
imitate = "my_package.imitate:Imitate"

[project.entry-points."bench.tasks"]
darkness = "my_package.darkness:Darkness"

[tool.setuptools]
packages = ["my_package"]
"""
SMALL = ("budget.updates=2", "evaluation.steps=1", "evaluation.points=[]", "evaluation.split=validation")
STUDY = """
name: s
method: opd_analytic
tasks: [ocr, darkness]
budget: 64
trials: 1
space: {optimizer.lr: {low: 1.0e-4, high: 1.0e-2}}
"""


def sets(*settings: str) -> list[str]:
    return [part for s in settings for part in ("--set", s)]


def run(*words: object, cwd: Path, code: int = 0) -> str:
    """stdout of a command that ends well, stderr of one that ends with this code."""
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment with a package that has README's own method and task."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "plugin"
    (source / "my_package").mkdir(parents=True)
    (source / "my_package" / "__init__.py").touch()
    for name in ("imitate.py", "darkness.py"):
        (source / "my_package" / name).write_text(example(f"my_package/{name}"))
    (source / "pyproject.toml").write_text(PYPROJECT)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    # The fresh environment sees what this one has (the harness, its dependencies, pip), so that nothing is downloaded.
    packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).strip())
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (packages / "parent.pth").write_text("\n".join(lines) + "\n")
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", source)
    run(python, *install, cwd=folder)
    return python


@pytest.mark.slow
def test_method_of_an_installed_package(python: Path, tmp_path: Path) -> None:
    assert "imitate" in run(python, "-m", "bench", "list", "methods", cwd=tmp_path)
    words = sets("params.pictures=4", *SMALL)
    run(python, "-m", "bench", "run", "--method", "imitate", "--tasks", "ocr", *words, cwd=tmp_path)
    (summary,) = (tmp_path / "results" / "runs").glob("imitate-*/summary.json")
    assert json.loads(summary.read_text())["updates"] == 2


@pytest.mark.slow
def test_an_installed_task_leaves_all_as_it_was(python: Path, tmp_path: Path) -> None:
    """README's main command means the same run whatever is installed."""
    main = ("-m", "bench", "run", "--method", "opd_analytic", "--tasks", "all", *sets("params.trajectories=2", *SMALL))
    plain = run(sys.executable, *main, "--dry-run", cwd=tmp_path)
    assert run(python, *main, "--dry-run", cwd=tmp_path) == plain
    run(python, *main, cwd=tmp_path)
    assert [path.name for path in (tmp_path / "results" / "runs").glob("opd_*")] == [plain.split()[1]]
    listed = run(python, "-m", "bench", "list", "tasks", cwd=tmp_path).splitlines()
    assert {line.split()[0] for line in listed if "; in all; " in line} == {"geneval", "ocr", "pickscore"}
    assert any(line.startswith("darkness") and line.endswith("Rewards dark images.") for line in listed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "run --method opd_analytic --tasks ocr,darkness",
        "run --method opd_analytic --tasks ocr,darkness --dry-run",
        "compare --methods multi_reward,opd_analytic --tasks ocr,darkness --seeds 0",
        "probe --methods opd_analytic --tasks ocr,darkness --states 2",
        "sweep study.yaml",
    ],
)
def test_a_task_without_a_shipped_teacher_is_told_before_anything_is_made(
    python: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    said = run(python, "-m", "bench", *command.split(), cwd=tmp_path, code=3)
    assert said.count("\n") == 1 and "ships no teacher for 'darkness'" in said
    assert "--teachers train" in said and "--tasks ocr" in said
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_cures_for_a_missing_teacher_are_cures(python: Path, tmp_path: Path) -> None:
    words = ("-m", "bench", "run", "--method", "opd_analytic", "--tasks", "ocr,darkness", "--dry-run")
    assert "darkness: train" in run(python, *words, *sets("teachers.darkness=train"), cwd=tmp_path)
    assert "darkness: train" in run(python, *words, "--teachers", "train", cwd=tmp_path)
    rl = ("-m", "bench", "run", "--method", "multi_reward", "--tasks", "ocr,darkness", "--dry-run")
    assert "- darkness" in run(python, *rl, cwd=tmp_path)
