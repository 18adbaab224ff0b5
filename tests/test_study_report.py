"""The report of the study's first part follows from the archives, and texts say what it says."""

import re
import shlex
import tarfile
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from report.evidence import collect
from report.hypotheses_file import read_hypotheses
from report.page import Report
from report.sections import make
from tests.study_scripts import STUDY

ROOT = STUDY.parents[2]
STORED = STUDY / "part1" / "report"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Made again by the command in the study's README."""
    folder = tmp_path_factory.mktemp("study")
    for path in (STUDY / "part1").glob("*.tar.xz"):
        with tarfile.open(path) as archive:
            archive.extractall(folder / "results" / "study", filter="data")
    (command,) = re.findall(r"^bench report (.*)$", (STUDY / "README.md").read_text(), re.M)
    *worlds, option, hypotheses, short, to = shlex.split(command)
    assert (option, short) == ("--hypotheses", "-o") and (ROOT / to).samefile(STORED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return make(collect([Path(world) for world in worlds]), read_hypotheses(ROOT / hypotheses))


def test_every_stored_table_follows_from_the_records(report: Report) -> None:
    stored = {path.stem: path for path in (STORED / "tables").glob("*.csv")}
    assert {table.name for table in report.tables} == stored.keys() > {"hypotheses", "against", "scores", "claims"}
    for table in report.tables:
        assert stored[table.name].with_suffix(".md").read_text().startswith(table.markdown()), table.name
        made = pd.read_csv(StringIO(table.frame().to_csv(index=False)))
        pd.testing.assert_frame_equal(made, pd.read_csv(stored[table.name]), rtol=1e-9)


def test_the_stored_page_answers_the_hypotheses_first_and_names_no_place_of_a_machine(report: Report) -> None:
    text = (STORED / "report.md").read_text()
    first, *_ = report.sections
    assert first.title == "Hypotheses stated in advance"
    assert text.startswith(f"# Comparison of multi-task post-training\n\n## {first.title}\n\n{first.markdown[0]}")
    for page in (text, (STORED / "index.html").read_text()):
        assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users|mnt)/", page)
