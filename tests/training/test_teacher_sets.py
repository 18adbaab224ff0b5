"""Teachers that `bench teach` trained are used as they were trained; those that are not there are missed at once."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from bench.backbones.adapters import Shape
from bench.config.resolve import describe, resolve
from bench.errors import MissingError, UsageError
from bench.training.teacher_sets import check_teachers
from tests.commands import bench

pytestmark = pytest.mark.usefixtures("few_prompts")

SMALL = ("evaluation.steps=1", "evaluation.split=validation", "evaluation.points=[]", "budget.updates=1")
TAUGHT = (*SMALL, "params.groups=4", "params.group_size=6", "sampler.guidance=2.5")


def sets(settings: tuple[str, ...]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def student(folder: Path, *options: str, code: int = 0) -> tuple[str, str]:
    words = ["run", "--method", "opd_analytic", "--tasks", "ocr", *sets((*SMALL, "params.trajectories=2")), *options]
    done = bench(words, folder)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[Path, str]:
    """A folder in which teachers of two tasks were trained, and what was said."""
    folder = tmp_path_factory.mktemp("taught")
    done = bench(["teach", "--tasks", "ocr,pickscore", *sets(TAUGHT)], folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_what_was_taught_is_a_folder_of_teachers(taught: tuple[Path, str]) -> None:
    """With guidance and cost of its run: the student is not distilled from another teacher than was trained."""
    folder, said = taught
    (named,) = re.findall(r"--teachers (\S+)", said)
    assert {path.name for path in (folder / named).iterdir()} == {"ocr", "pickscore"}
    student(folder, "--teachers", named)
    (run,) = (folder / "results" / "runs").glob("opd_analytic-*")
    spec = json.loads((run / "spec.json").read_text())["spec"]
    assert spec["teacher_guidance"] == {"ocr": 2.5}
    (trained,) = (p for p in run.parent.glob("single_task-*/summary.json") if "ocr" in p.read_text())
    teacher, own = json.loads(trained.read_text()), json.loads((run / "summary.json").read_text())
    assert own["teachers"]["ocr"]["evaluations"] == teacher["cost"]["evaluations"]["training"]
    # Without weights, records still say whose student a teacher is.
    assert own["teachers"]["ocr"]["hash"] == teacher["weights"] != own["weights"]
    for option in re.findall(r"--set (teachers.ocr=\S+)", said):
        assert "teacher_guidance:\n  ocr: 2.5" in student(folder, "--set", option, "--dry-run")[0]


def test_the_commands_that_it_ends_with_are_accepted_as_they_are(taught: tuple[Path, str], tmp_path: Path) -> None:
    """A dry run of the same says the same commands, and what was spent, before anything is trained."""
    folder, said = taught
    told = [line for line in said.splitlines() if line.startswith("bench ")]
    assert [shlex.split(line)[1] for line in told] == ["run", "compare"]
    for line in told:
        done = bench([*shlex.split(line)[1:], "--dry-run"], folder)
        assert done.returncode == 0, done.stderr
        shown = re.findall(r"(?:ocr|teacher of ocr): (\S+/ocr)", done.stdout)
        assert {(folder / path / "adapter_config.json").is_file() for path in shown} == {True}, done.stdout
    spent = [
        json.loads(path.read_text())["cost"]["evaluations"]["training"]
        for path in (folder / "results" / "runs").glob("single_task-*/summary.json")
    ]
    words = ["teach", "--tasks", "ocr,pickscore", *sets(TAUGHT), "--dry-run"]
    for where, left in ((tmp_path, sum(spent)), (folder, 0)):
        before = bench(words, where)
        assert before.returncode == 0, before.stderr
        assert f"training NFE: {sum(spent):,} in total, {left:,} still to do" in before.stdout
        assert [line for line in before.stdout.splitlines() if line.startswith("bench ")] == told
    assert not any(tmp_path.iterdir())
    assert "2 teachers: 2 finished" in before.stdout


def test_a_command_has_the_settings_that_its_student_needs(sd3_folder: Path, tmp_path: Path) -> None:
    given = ["scorers.ocr.prompts=my prompts", "compute.negative_prompt='a: \"b\"'", "sampler.guidance=2", "device=cuda"]
    words = ["teach", "--tasks", "ocr", "--backbone", str(sd3_folder), "--results", "results/my runs", *sets(given)]
    (tmp_path / "results" / "my runs").mkdir(parents=True)
    done = bench([*words, "--seeds", "3", "--dry-run"], tmp_path)
    assert done.returncode == 0, done.stderr
    (student,) = [line for line in done.stdout.splitlines() if line.startswith("bench run ")]
    told = shlex.split(student)
    for word in ("scorers.ocr.prompts=my prompts", "device=cuda", "results/my runs", str(sd3_folder), "3"):
        assert word in told
    folder = tmp_path / told[told.index("--teachers") + 1]
    shutil.copytree(_adapter(sd3_folder, tmp_path), folder / "ocr")
    again = bench([*told[1:], "--set", "sampler.guidance=2", "--dry-run"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "negative_prompt: 'a: \"b\"'" in again.stdout
    assert "prompts: my prompts" in again.stdout


def test_tasks_that_need_settings_are_taught_and_compared(tmp_path: Path) -> None:
    """taste_3 cannot be resolved without its settings: they are in the commands that teaching ends with."""
    needed = ["scorers.taste_3.among=3", "scorers.taste_2.among=3"]
    done = bench(["teach", "--tasks", "taste_2,taste_3", *sets(needed), "--dry-run"], tmp_path)
    assert done.returncode == 0, done.stderr
    told = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("bench ")]
    assert [words[1] for words in told] == ["run", "compare"]
    for words in told:
        assert set(needed) < {word.replace(chr(34), "") for word in words}
    assert "trained by the recipe" in done.stdout
    for further in ((), ("--grid", "lr=0.001,0.01")):
        words = ["compare", "--methods", "multi_reward,self_opd", "--tasks", "taste_2,taste_3", *sets(needed), *further]
        done = bench([*words, "--dry-run"], tmp_path)
        assert done.returncode == 0, done.stderr
    done = bench(["compare", "--methods", "multi_reward", "--tasks", "taste_3", "--dry-run"], tmp_path)
    assert done.returncode == 2 and "set scorers.taste_3.among=3" in done.stderr


def _adapter(pipeline: Path, place: Path) -> Path:
    """The folder of a student's adapter on a pipeline."""
    backbone = describe(str(pipeline)).load("cpu")
    backbone.adapters.add("student", Shape(rank=4, alpha=8.0, targets=("to_q",)), 0)
    backbone.adapters.save("student", place / "adapter", base="p")
    return place / "adapter"


def test_the_same_is_taught_once_and_kept_once(taught: tuple[Path, str]) -> None:
    folder, said = taught
    before = {path: path.stat().st_mtime_ns for path in (folder / "results" / "runs").glob("teachers-*/*/*")}
    again = bench(["teach", "--tasks", "pickscore,ocr", *sets(TAUGHT)], folder)
    assert re.findall(r"--teachers \S+", again.stdout) == re.findall(r"--teachers \S+", said)
    after = {path: path.stat().st_mtime_ns for path in (folder / "results" / "runs").glob("teachers-*/*/*")}
    assert before == after
    assert all(not path.name.startswith(".") for path in (folder / "results" / "runs").glob("teachers-*/*"))


def test_other_teachers_are_named_before_the_recipes_are_trained(taught: tuple[Path, str]) -> None:
    folder, _ = taught
    _, said = student(folder, "--teachers", "train", "--dry-run")
    assert said.startswith("note: the teacher for") and said.count("\n") == 1
    (use,) = re.findall(r"--set (teachers\.ocr=\S+/adapter)", said)
    shown, said = student(folder, "--set", use, "--dry-run")
    assert "teacher_guidance:\n  ocr: 2.5" in shown and not said
    assert not student(folder, "--teachers", "shipped", "--dry-run")[1]


def test_a_comparison_takes_them_too(taught: tuple[Path, str]) -> None:
    folder, said = taught
    (use,) = re.findall(r"--set (teachers\.ocr=\S+)", said)
    words = ["compare", "--methods", "merge,single_task", "--tasks", "ocr", "--seeds", "0", "--executor", "inline"]
    words += [*sets(SMALL[:3]), "--set", use, "--budget", "40", "--results", "results/c"]
    words += sets(("single_task.params.groups=2", "single_task.params.group_size=2"))
    done = bench(words, folder)
    assert done.returncode == 0, done.stderr
    (merged,) = (folder / "results" / "c").glob("merge-*/summary.json")
    assert json.loads(merged.read_text())["teachers"]["ocr"]["source"] == use.partition("=")[2]


def test_a_damaged_copy_is_named(taught: tuple[Path, str], tmp_path: Path) -> None:
    folder, said = taught
    (named,) = re.findall(r"--teachers (\S+)", said)
    shutil.copytree(folder / named, tmp_path / "copy")
    (tmp_path / "copy" / "ocr" / "training.json").write_text("{")
    _, error = student(tmp_path, "--teachers", "copy", "--dry-run", code=2)
    assert "copy/ocr/training.json" in error and error.count("\n") == 1
    shutil.rmtree(tmp_path / "copy" / "ocr")
    _, error = student(tmp_path, "--teachers", "copy", "--dry-run", code=2)
    assert "copy/ocr" in error


@pytest.mark.slow
def test_jobs_teach_as_well(tmp_path: Path) -> None:
    done = bench(["teach", "--tasks", "ocr", "--executor", "local", *sets(TAUGHT)], tmp_path)
    assert done.returncode == 0, done.stderr
    (named,) = re.findall(r"--teachers (\S+)", done.stdout)
    assert [path.parent.name for path in tmp_path.glob("results/runs/teachers-*/ocr")] == [Path(named).name]


def test_missing_teachers_are_found_before_anything_is_trained(tmp_path: Path) -> None:
    there = resolve("opd_analytic", ["ocr"])
    check_teachers([there, there.model_copy(update={"teachers": {"ocr": "train"}})])
    check_teachers([there.model_copy(update={"teachers": {"ocr": "hub:a/b/c"}})])  # is not fetched for this
    with pytest.raises(UsageError, match="no adapter at"):
        check_teachers([there.model_copy(update={"teachers": {"ocr": str(tmp_path)}})])
    missing = {"tasks": ("geneval", "drawbench"), "teachers": {"geneval": "shipped", "drawbench": "shipped"}}
    with pytest.raises(MissingError, match=r"--teachers train.*--tasks geneval"):
        check_teachers([there.model_copy(update=missing)])
    _, error = student(tmp_path, "--set", f"teachers.ocr={tmp_path}", code=2)
    assert "no adapter at" in error and not (tmp_path / "results").exists()
