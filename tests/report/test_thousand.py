"""A thousand runs: under 20 s and under 1 GB on two idle cores; and whatever is wrong among them is still said."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.report import synthetic

LIMIT_S = 20 if "PYTEST_XDIST_WORKER" not in os.environ else 60  # there other tests share the cores
MEASURED = """
import resource, sys
from bench.cli import main
try:
    main()
finally:
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"peak {peak}", file=sys.stderr)
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """100 lines of 10 seeds, with as many prompts and points as micro has."""
    monkeypatch.setattr(synthetic, "STRATA", {"geneval": [f"t{i % 6}" for i in range(288)], "ocr": [""] * 192})
    root = tmp_path / "results" / "runs"
    methods = ("opd_analytic", "multi_reward", "sft", "cascade")
    for line in range(100):
        method = methods[line % 4]
        for seed in range(10):
            synthetic.make_run(
                root, method, seed, 0.3 + 0.005 * line, settings={"lr": line // 4}, teachers=method != "multi_reward",
                points=(0.17, 0.33, 0.5, 0.67, 0.83, 1.0), state="done" if (line, seed) != (7, 3) else "failed",
            )  # fmt: skip
    return root


@pytest.mark.slow
def test_a_thousand_runs_are_quick_and_small(runs: Path, tmp_path: Path) -> None:
    assert len(list(runs.glob("*/spec.json"))) == 1000
    words = [sys.executable, "-c", MEASURED, "report", str(runs), "-o", str(tmp_path / "out")]
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("peak "), done.stderr  # no warning of matplotlib's either
    assert seconds < LIMIT_S
    assert int(done.stderr.split()[-1]) < 1e6  # kB
    scores = (tmp_path / "out" / "tables" / "scores.csv").read_text().splitlines()
    assert len(scores) == 1 + 100 + 3  # lines; base and two teachers
    text = (tmp_path / "out" / "report.md").read_text()
    failed = next(p.parent.name for p in runs.glob("*/failure.json") if json.loads(p.read_text()))
    assert f"{failed} failed: it broke" in text
    assert "24 best lines" in text
