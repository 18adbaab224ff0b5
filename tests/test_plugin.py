"""A method from another package: built, installed into a fresh environment, found by entry point, run."""

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

[tool.setuptools]
packages = ["my_package"]
"""


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_method_of_an_installed_package(tmp_path: Path) -> None:
    source = tmp_path / "plugin"
    (source / "my_package").mkdir(parents=True)
    (source / "my_package" / "__init__.py").touch()
    (source / "my_package" / "imitate.py").write_text(example("my_package/imitate.py"))
    (source / "pyproject.toml").write_text(PYPROJECT)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    # The fresh environment sees what this one has (the harness, its dependencies, pip), so that nothing is downloaded.
    packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip())
    lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
    (packages / "parent.pth").write_text("\n".join(lines) + "\n")
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", source)
    run(python, *install, cwd=tmp_path)
    assert "imitate" in run(python, "-m", "bench", "list", "methods", cwd=tmp_path)
    sets = ("budget.updates=2", "evaluation.steps=1", "evaluation.points=[]", "params.pictures=4")
    words = [part for s in sets for part in ("--set", s)]
    run(python, "-m", "bench", "run", "--method", "imitate", "--tasks", "ocr", *words, cwd=tmp_path)
    (summary,) = (tmp_path / "results" / "runs").glob("imitate-*/summary.json")
    assert json.loads(summary.read_text())["updates"] == 2
