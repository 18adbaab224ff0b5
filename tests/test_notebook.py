"""The notebook runs from its first cell to its last."""

import os
import sys
from pathlib import Path

import pytest

from tests.few import BENCH

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_goes_from_a_comparison_to_its_figures(tmp_path: Path, monkeypatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    # Its commands see few prompts, so that less of the time goes into evaluations.
    command = tmp_path / "bin" / "bench"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{BENCH}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "docs" / "tutorials" / "results.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # nothing of a machine is stored
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3  # one drawn here, two of the report
    text = "".join(output.get("text", "") for output in outputs)
    assert "error" not in text.lower() and "| ocr | exact |" in text
    assert len(list((tmp_path / "results" / "tutorial").glob("*/summary.json"))) == 4
