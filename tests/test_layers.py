"""Which part of the code may import which: the contracts in pyproject.toml hold, and a planted import breaks them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "methods", "tasks", "report", "sweeps")


def lint(tree: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run(words, cwd=tree, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code alone, to plant imports in."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", tree)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            target = tree / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tree


def test_no_room_imports_from_one_above_it_and_nothing_goes_round(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("bench/sampler/draws.py", "import bench.config.spec", "layers below it only"),
        ("bench/store/run.py", "from bench.training import loop", "layers below it only"),
        ("bench/jobs/runs.py", "def f():\n    from bench.cli import app", "layers below it only"),
        ("bench/errors.py", "import bench.attic", "layers below it only"),
        ("bench/registry.py", "import methods.sft", "by entry points"),
        ("methods/sft.py", "from bench.training.loop import Loop", "import no commands"),
        ("bench/sampler/schedule.py", "from bench.sampler import rollout", "import each other"),
        ("tasks/geneval/rules.py", "import tasks.geneval.task", "import each other"),
    ],
)
def test_a_planted_import_breaks_its_contract(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / file
    before = path.read_text()
    attic = copy / "bench" / "attic.py"  # a file that has no layer yet
    try:
        path.write_text(f"{before}\n{line}\n")
        if "attic" in line:
            attic.write_text("")
        done = lint(copy)
    finally:
        path.write_text(before)
        attic.unlink(missing_ok=True)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert any(contract in row and "BROKEN" in row for row in told.splitlines()), told


def test_few_files_lie_directly_in_bench() -> None:
    assert len(list((ROOT / "bench").glob("*.py"))) <= 12
