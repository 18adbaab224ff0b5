"""Dry runs of compare, probe and teach: what they predict is what happens, they write nothing, and they refuse the same."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from bench.cli.dryrun_probe import explain_probe
from bench.cli.probe_plan import Probing
from bench.config.resolve import describe
from bench.jobs.placement import placement
from tests.commands import bench

pytestmark = pytest.mark.usefixtures("few_prompts")

SMALL = ["--set", "evaluation.steps=1", "--set", "evaluation.split=validation", "--set", "evaluation.points=[]"]
COMPARE = ["compare", "--methods", "opd_analytic,multi_reward,merge", "--tasks", "ocr", "--seeds", "0,1", "--budget", "300"]
RECIPE = "{budget: {updates: 2}, ema: {every: 1}, evaluation: {steps: 1, points: []}, params: {groups: 2, group_size: 3}}"
STUDY = "{name: s, method: opd_analytic, budget: 300, trials: 1, space: {optimizer.lr: {low: 0.001, high: 0.01}}}"


def short_teachers(folder: Path) -> None:
    """Let this process train teachers in two updates: the only recipe of micro is a short one."""
    from bench.backbones import micro

    honest = micro.descriptor
    micro.descriptor = lambda: replace(honest(), recipes=(folder,))


def on_a_terminal() -> None:
    os.environ |= {"FORCE_COLOR": "1", "COLUMNS": "80"}


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder with its size and the time of its last change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def numbers(pattern: str, text: str) -> list[int]:
    """The numbers in brackets of a pattern that the text has exactly once."""
    (found,) = re.findall(pattern, text)
    return [int(number.replace(",", "")) for number in ([found] if isinstance(found, str) else found)]


def spent(folder: Path, methods: str) -> int:
    """Training NFE that finished runs have recorded."""
    summaries = [json.loads(path.read_text()) for path in folder.glob(f"{methods}-*/summary.json")]
    return sum(summary["cost"]["evaluations"].get("training", 0) for summary in summaries)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a comparison, what its dry run said in the empty folder, and what it says now."""
    place = tmp_path_factory.mktemp("compared")
    recipes, folder = place / "recipes", place / "here"
    for made in (recipes, folder):
        made.mkdir()
    (recipes / "default.yaml").write_text(RECIPE.replace("groups: 2, group_size: 3", ""))
    for name in ("single_task", "multi_reward"):
        (recipes / f"{name}.yaml").write_text(RECIPE)
    words = [*COMPARE, *SMALL, "--set", "teachers.ocr=train", "--executor", "inline"]
    how = {"before": short_teachers, "arguments": (recipes,)}
    before = bench([*words, "--dry-run"], folder, **how)
    assert before.returncode == 0, before.stderr
    assert not any(folder.iterdir())
    done = bench(words, folder, **how)
    assert done.returncode == 0, done.stderr
    files = tree(folder)
    after = bench([*words, "--dry-run"], folder, **how)
    assert after.returncode == 0, after.stderr
    assert tree(folder) == files
    # One run stopped after its last update, and one was taken away.
    runs = folder / "results" / "runs"
    (stopped,), (removed,) = runs.glob("opd_analytic-*-s0"), runs.glob("opd_analytic-*-s1")
    assert (stopped / "checkpoint.safetensors").exists()
    for path in (stopped / "summary.json", removed / "summary.json", removed / "checkpoint.safetensors"):
        path.rename(path.with_suffix(".kept"))
    resumed = bench([*words, "--dry-run"], folder, **how)
    for path in (stopped / "summary.json", removed / "summary.json", removed / "checkpoint.safetensors"):
        path.with_suffix(".kept").rename(path)
    assert resumed.returncode == 0, resumed.stderr
    (folder / "resumed.txt").write_text(resumed.stdout)
    return folder, before.stdout, after.stdout


def test_a_comparison_spends_what_its_dry_run_said(compared: tuple[Path, str, str]) -> None:
    folder, before, _ = compared
    runs = folder / "results" / "runs"
    students = spent(runs, "opd_analytic") + spent(runs, "multi_reward") + spent(runs, "merge")
    teachers = spent(runs, "single_task")
    assert students > 0 < teachers
    assert "6 runs of seeds 0, 1: 6 new" in before
    assert numbers(r"of these runs: (\S+) in total, (\S+) still to do", before) == [students, students]
    assert numbers(r"trained first: (\d+) teachers, (\S+) training", before) == [2, teachers]
    assert numbers(r"still to do with them: (\S+) training", before) == [students + teachers]
    assert before.count("teacher of ocr: trained first") == 2
    (record,) = runs.glob("comparison-*.json")
    for line in json.loads(record.read_text())["lines"]:
        each, whole = numbers(rf"│ {line['label']} +│ 2 new +│ +(\S+) │ +(\S+) │", before)
        assert each == line["training_evaluations"]
        assert whole == each + line["teacher_evaluations"]


def test_what_exists_is_not_made_again(compared: tuple[Path, str, str]) -> None:
    folder, _, after = compared
    assert "6 runs of seeds 0, 1: 6 finished" in after
    assert numbers(r"in total, (\S+) still to do", after) == [0]
    assert "trained first" not in after
    assert len(re.findall(r"teacher of ocr: trained before \(results/runs/single_task-\w+-s[01]\)", after)) == 2
    resumed = (folder / "resumed.txt").read_text()
    assert "6 runs of seeds 0, 1: 4 finished, 1 resumed, 1 new" in resumed
    # A checkpoint holds what was spent, so only the run that was taken away is to be made.
    one = spent(folder / "results" / "runs", "opd_analytic") // 2
    assert numbers(r"in total, (\S+) still to do", resumed) == [one]


PROBES = {
    "alternating tasks and a sampled method": (
        ["opd_analytic", "opd_ppo"], ["sampler.kernel=cps", "sampler.steps=4", "params.trajectories=2"],
        ["sampler.eta=0.3,0.8"],
    ),
    "rl": (["multi_reward"], ["sampler.steps=4", "params.groups=2", "params.group_size=2"], []),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_spends_what_its_dry_run_said(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    from bench.cli import probe

    methods, overrides, axes = PROBES[name]
    asked = Probing(methods, ["ocr", "pickscore"], "base", "micro", axes, overrides, 2, 2, True, None)
    explain_probe(asked, tmp_path / "results", placement("inline", None, None))
    said = capsys.readouterr().out
    assert "at most" not in said
    assert not any(tmp_path.iterdir())
    labs, honest = [], probe.laboratory

    def kept(*given):
        found = honest(*given)
        labs.append(found[0])
        return found

    monkeypatch.setattr(probe, "laboratory", kept)
    probe.probe_methods(asked, tmp_path / "results")
    measured = sum(sum(lab.backbone.meter.nfe.values()) for lab in labs)
    assert numbers(r"predicted: (\S+) NFE in total", said) == [measured]


REFUSED = {
    "compare: an unknown method": ["compare", "--methods", "opd_analitic"],
    "compare: an axis twice": ["compare", "--methods", "opd_analytic", "--grid", "steps=3", "--grid", "steps=5"],
    "compare: the same runs": ["compare", "--methods", "opd_analytic", "--grid", "lr=1e-3,0.001"],
    "compare: a wrong folder": ["compare", "--methods", "merge", "--results", "elsewhere"],
    "compare: GPUs on the CPU": ["compare", "--methods", "merge", "--executor", "slurm", "--slurm", "gpus=1"],
    "compare: an unknown executor": ["compare", "--methods", "merge", "--executor", "locl"],
    "compare: a folder without a teacher": ["compare", "--methods", "merge", "--set", "teachers.ocr=."],
    "probe: nothing to probe": ["probe", "--methods", "merge"],
    "probe: an idle setting": ["probe", "--methods", "opd_analytic", "--set", "optimizer.lr=1"],
    "probe: no student": ["probe", "--methods", "opd_analytic", "--student", "nowhere"],
    "probe: a folder as output": ["probe", "--methods", "opd_analytic", "--output", "."],
    "teach: an unknown task": ["teach", "--tasks", "orc"],
    "teach: an unknown setting": ["teach", "--tasks", "ocr", "--set", "params.grups=3"],
    "teach: an unknown tracker": ["teach", "--tasks", "ocr", "--set", "trackers=[tensorbord]"],
    "teach: a file as results": ["teach", "--tasks", "ocr", "--results", "study.yaml"],
    "teach: GPUs on the CPU": ["teach", "--tasks", "ocr", "--executor", "slurm", "--slurm", "gpus=1"],
    "teach: an adapter to start from of another shape": ["teach", "--tasks", "ocr", "--set", "lora.start=adapter"],
    "teach: a folder that is a file": ["teach", "--tasks", "ocr", "--results", "results/file/runs"],
    "sweep: a folder that is a file": ["sweep", "study.yaml", "--results", "results/file/sweeps"],
    "sweep: an unknown study": ["sweep", "odp"],
    "sweep: several workers in one process": ["sweep", "study.yaml", "--workers", "2"],
    "sweep: no database": ["sweep", "study.yaml", "--storage", "sqlite:////nowhere/at/all/x.db"],
    "sweep: GPUs on the CPU": ["sweep", "study.yaml", "--executor", "slurm", "--slurm", "gpus=1"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_dry_run_refuses_what_the_command_refuses(name: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    shipped = describe("micro").teachers / "ocr"
    shutil.copytree(shipped, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 7}))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "file").touch()
    before = tree(tmp_path)
    dry = bench([*REFUSED[name], "--dry-run"], tmp_path)
    assert tree(tmp_path) == before
    done = bench(REFUSED[name], tmp_path)
    assert dry.returncode == done.returncode == 2, dry.stderr + done.stderr
    assert dry.stderr == done.stderr.lstrip("\n")  # progress bars that showed nothing leave an empty line
    assert dry.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "--methods", "opd_analytic,multi_reward", "--grid", "opd_analytic.lr=1e-3,3e-4"],
        ["probe", "--methods", "opd_analytic", "--grid", "lora.rank=4,8", "--by-sigma"],
        ["teach"],
        ["sweep", "opd"],
    ],
    ids=lambda words: words[0],
)
def test_a_table_fits_a_terminal(words: list[str], tmp_path: Path) -> None:
    done = bench([*words, "--dry-run"], tmp_path, before=on_a_terminal)
    assert done.returncode == 0, done.stderr
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
    table = [line for line in lines if line.startswith(("┏", "┃", "┡", "│", "└"))]
    assert len(table) > 4
    assert sum(line.startswith("┏") for line in table) == 1  # in one part
    assert max(map(cell_len, table)) <= 80


def test_hours_are_predicted_where_the_size_is_known(sd3_folder: Path, tmp_path: Path) -> None:
    words = ["compare", "--methods", "opd_analytic", "--tasks", "ocr", "--backbone", str(sd3_folder), "--seeds", "0-2"]
    words += ["--set", "teachers.ocr=train", "--budget", "400", "--set", "sampler.steps=4"]
    done = bench([*words, "--dry-run"], tmp_path)
    assert done.returncode == 0, done.stderr
    time = r"(\S+ to \S+ minutes)"
    each = rf": training {time}, held-out evaluations of the student not known per run"
    (student,) = re.findall(f"opd_analytic{each}", done.stdout)
    (teacher,) = re.findall(f"teacher of ocr{each}", done.stdout)
    (total,) = re.findall(rf"all unfinished runs on one GPU, at most: training {time}, held-out", done.stdout)
    low = [float(text.split()[0]) for text in (student, teacher, total)]
    assert low[2] == pytest.approx(3 * (low[0] + low[1]), rel=0.05)
    assert "held-out evaluation of ocr: not included, because its number of images is not known" in done.stdout
    micro = bench([*COMPARE, "--dry-run"], tmp_path)
    assert "on one GPU" not in micro.stdout
