"""Of the settings of several tasks, each teacher gets its own."""

import pytest

from bench.config.own_settings import own_settings
from bench.errors import UsageError
from tests.commands import bench

GIVEN = [
    "budget.updates=3", "scorers.ocr.device=cpu", 'scorers={"geneval": {"device": "cpu"}, "aesthetic": {"head": "h"}}',
    "rewards.pickscore.aesthetic=0.5", "rewards.pickscore.ocr=1",
]  # fmt: skip
TASKS = ("geneval", "ocr", "pickscore")


def test_each_task_keeps_its_scorers_and_rewards() -> None:
    aesthetic = 'scorers={"aesthetic": {"head": "h"}}'
    assert own_settings(GIVEN, "geneval", TASKS) == [GIVEN[0], GIVEN[2]]
    assert own_settings(GIVEN, "ocr", TASKS) == [GIVEN[0], GIVEN[1], aesthetic]  # refused there: aesthetic is nobody's
    assert own_settings(GIVEN, "pickscore", TASKS) == [GIVEN[0], GIVEN[1], aesthetic, *GIVEN[3:]]
    with pytest.raises(UsageError):
        own_settings(["budget"], "ocr", TASKS)


def test_teachers_with_scorers_of_their_own_are_taught_together(sd3_folder, tmp_path) -> None:
    for name, text in (("train", "a sign that says \"A{}\"\n"), ("test", "a note that says \"B{}\"\n")):
        (tmp_path / f"{name}.txt").write_text("".join(text.format(i) for i in range(140)))
    done = bench([
        "teach", "--tasks", "ocr,aesthetic", "--backbone", str(sd3_folder), "--dry-run",
        "--set", f"scorers.ocr.prompts={tmp_path}", "--set", f"scorers.aesthetic.prompts={tmp_path}",
    ], tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"--set scorers.ocr.prompts={tmp_path}" in done.stdout and f"scorers.aesthetic.prompts={tmp_path}" in done.stdout
    wrong = bench(["teach", "--tasks", "ocr,aesthetic", "--backbone", str(sd3_folder), "--dry-run", "--set", "scorers.hpsv2.model=x"], tmp_path)
    assert wrong.returncode == 2 and "hpsv2" in wrong.stderr
