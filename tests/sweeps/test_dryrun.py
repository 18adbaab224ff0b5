"""A dry run of a sweep: what it predicts is not exceeded, it changes nothing on disk, and it refuses what the sweep does."""

import json
import re
from pathlib import Path

import pytest
import yaml

from sweeps.storage import Place
from sweeps.study import find_study, read_study
from tests.cli.test_dryrun import tree
from tests.commands import bench

pytestmark = pytest.mark.usefixtures("few_prompts")

STUDY = {
    "name": "s", "method": "opd_analytic", "tasks": "ocr", "budget": 300, "trials": 2, "seeds": "0,1", "points": 1,
    "settings": {"evaluation.steps": 1},
    "space": {
        "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "params.weighting": {"choices": ["velocity", "kl"]},
        "params.trajectories": {"low": 10, "high": 20, "when": {"params.weighting": ["kl"]}},
    },
    "enqueue": [{"optimizer.lr": 1e-3, "params.weighting": "velocity"}],
}  # fmt: skip
STORAGES = {"journal": [], "database": ["--storage", "sqlite:///studies.db"]}


def write_study(folder: Path, **changes) -> None:
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))


def dry(folder: Path, *words: str, code: int = 0) -> str:
    """What a dry run says; it changes nothing on disk."""
    before = tree(folder)
    done = bench(["sweep", "study.yaml", "--dry-run", *words], folder)
    assert done.returncode == code, done.stderr
    assert tree(folder) == before
    return done.stderr if code else done.stdout


@pytest.mark.parametrize("storage", STORAGES)
def test_a_sweep_spends_no_more_than_its_dry_run_said(storage: str, tmp_path: Path) -> None:
    write_study(tmp_path)
    words = STORAGES[storage]
    said = dry(tmp_path, *words)
    assert "2 trials of seeds 0, 1: 2 to start" in said
    assert "at most 4 runs x 300 = 1,200, plus less than one update per run" in said
    assert "sampler: tpe; pruner: none" in said
    assert "0.0001 to 0.01, log scale" in said and "if params.weighting is kl" in said
    assert "tried first: optimizer.lr=0.001 params.weighting=velocity" in said.replace(",", "")
    done = bench(["sweep", "study.yaml", *words], tmp_path)
    assert done.returncode == 0, done.stderr
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("results/sweeps/s/runs/opd_analytic-*/summary.json")]
    spent = [summary["cost"]["evaluations"]["training"] for summary in summaries]
    updates = [summary["updates"] for summary in summaries]
    assert len(spent) == 4
    assert all(300 <= nfe < 300 + nfe / count for nfe, count in zip(spent, updates))
    said = dry(tmp_path, *words)
    assert "2 trials of seeds 0, 1: 2 complete, 0 to start" in said
    assert "at most 0 runs x 300 = 0" in said
    write_study(tmp_path, trials=5)  # a study may be given more trials
    assert "2 complete, 3 to start" in dry(tmp_path, *words)
    write_study(tmp_path, budget=400)
    refused = dry(tmp_path, *words, code=2)
    assert "was started with a different method, space, budget or seeds" in refused
    done = bench(["sweep", "study.yaml", *words], tmp_path)
    assert (done.returncode, done.stderr) == (2, refused)


def test_a_journal_that_ends_in_the_middle_of_a_line_is_read_and_left(tmp_path: Path) -> None:
    write_study(tmp_path)
    done = bench(["sweep", "study.yaml"], tmp_path)
    assert done.returncode == 0, done.stderr
    place = Place(tmp_path / "results" / "sweeps" / "s")
    whole = place.journal.read_bytes()
    place.journal.write_bytes(whole + b'{"op_code": 4, "wor')
    assert "2 complete, 0 to start" in dry(tmp_path)
    place.journal.write_bytes(whole + b"hello")
    refused = dry(tmp_path, code=2)
    assert "does not end with a record of a study's journal" in refused
    assert bench(["sweep", "study.yaml"], tmp_path).stderr == refused
    place.journal.write_bytes(b"hello\n" + whole)
    assert "line 1 is damaged" in dry(tmp_path, code=2)
    assert re.search("line 1 is damaged", bench(["sweep", "study.yaml"], tmp_path).stderr)


def test_a_study_that_does_not_exist_is_not_found_and_not_made(tmp_path: Path) -> None:
    write_study(tmp_path)
    spec = read_study(tmp_path / "study.yaml")
    before = tree(tmp_path)
    for storage in (None, f"sqlite:///{tmp_path}/studies.db"):
        assert find_study(spec, Place(tmp_path / "results" / "s", storage)) is None
    assert tree(tmp_path) == before


def test_teachers_that_a_sweep_trains_first_are_counted(tmp_path: Path) -> None:
    write_study(tmp_path, settings={"teachers.ocr": "train"})
    said = dry(tmp_path)
    assert said.count("teacher of ocr: trained first") == 2
    assert "trained first: 2 teachers, 307,200 training NFE in addition" in said
