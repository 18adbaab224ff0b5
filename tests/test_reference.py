"""The figures shown in the README and the model card are those of the stored records."""

import json
from pathlib import Path

import pytest

from bench.analysis.records import model_rows, recovered
from bench.analysis.stats import estimate
from bench.cli.console import print_table

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference" / "micro" / "opd_analytic"
CARD = ROOT / "bench" / "backbones" / "micro" / "weights" / "README.md"


@pytest.fixture(scope="module")
def summaries() -> list[dict]:
    found = [json.loads(path.read_text()) for path in sorted(REFERENCE.glob("*/summary.json"))]
    assert [s["seed"] for s in found] == [0, 1, 2]
    return found


def test_readme_shows_the_stored_table(summaries: list[dict], capsys: pytest.CaptureFixture) -> None:
    print_table(summaries)
    shown = (ROOT / "README.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        assert line.rstrip() in shown, line


def test_card_shows_the_stored_scores(summaries: list[dict]) -> None:
    card = CARD.read_text()
    tasks = list(summaries[0]["models"]["base"])
    for model in ("base", *(f"teacher {task}" for task in tasks)):
        cells = [str(estimate(*model_rows(summaries, model, task))) for task in tasks]
        assert f"| {model} | {' | '.join(cells)} |" in card, cells


def test_the_stored_runs_meet_the_main_jobs_lines(summaries: list[dict]) -> None:
    """Each teacher is .15 above the base; the student recovers 90% of the mean gain, 75% of each task's."""
    for task in summaries[0]["models"]["base"]:
        teacher, base = (estimate(*model_rows(summaries, m, task)).value for m in (f"teacher {task}", "base"))
        assert teacher - base >= 0.15
    shares = recovered(summaries)
    assert shares.pop("mean").value >= 0.9
    assert min(share.value for share in shares.values()) >= 0.75
