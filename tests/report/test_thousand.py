"""A thousand runs: under 20 s and under 1 GB on two idle cores; and whatever is wrong among them is still said."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import computed_s, slowness
from tests.report import synthetic

LIMIT_S = 20
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
"""Else other tests share the cores, and what the clock says is theirs too."""


def _family(process: int) -> list[int]:
    """The process and all that it started."""
    try:
        started = [
            int(child)
            for task in Path(f"/proc/{process}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has just ended
        started = []
    return [process, *(member for child in started for member in _family(child))]


def _memory(process: int) -> int:
    """kB of a process and all that it started, pages they share counted once (Pss of Linux)."""
    total = 0
    for member in _family(process):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


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
    words = [Path(sys.executable).with_name("bench"), "report", runs, "-o", tmp_path / "out"]
    slow, began, computed, peak = slowness(), time.monotonic(), computed_s(), 0
    with (tmp_path / "said").open("w") as said, subprocess.Popen(words, stdout=said, stderr=said) as process:
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(0.05)
    seconds = time.monotonic() - began
    slow = max(slow, slowness())
    # Nothing but the page's path: no warning of matplotlib's either.
    assert (tmp_path / "said").read_text() == f"{tmp_path / 'out' / 'index.html'}\n"
    assert process.returncode == 0
    assert computed_s() - computed < 2 * LIMIT_S * slow  # two cores
    assert seconds < LIMIT_S * slow or not ALONE
    assert 1e5 < peak < 1e6  # kB
    scores = (tmp_path / "out" / "tables" / "scores.csv").read_text().splitlines()
    assert len(scores) == 1 + 100 + 4  # lines; base, two teachers, each on its own
    text = (tmp_path / "out" / "report.md").read_text()
    failed = next(p.parent.name for p in runs.glob("*/failure.json") if json.loads(p.read_text()))
    assert f"{failed} failed: it broke" in text
    assert "24 lines: the reference and the best" in text
