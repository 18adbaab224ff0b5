"""The study's protocol, its files and the recipes of its worlds say the same."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.backbones.teacher_files import find_teacher
from bench.cli.comparison_plan import plan_comparison
from bench.config.resolve import describe, resolve, teacher_spec
from bench.results import results
from report.hypotheses_file import Selection, read_hypotheses
from sweeps.study import read_study
from tests.archives import members, summaries
from tests.report.synthetic import make_run
from tests.study_scripts import STUDY, scripts, short

ROOT = Path(__file__).parents[1]
FOLDER = STUDY
PROTOCOL = (FOLDER / "PROTOCOL.md").read_text()
D = 153_600
TASKS = ["geneval", "ocr", "pickscore"]
SWEEPS = sorted((FOLDER / "sweeps").glob("*.yaml"))


def test_the_protocol_states_the_budget() -> None:
    assert f"D is\n{D:,}." in PROTOCOL


@pytest.mark.parametrize("world", ["study-1", "study-2", "study-3"])
def test_every_teacher_costs_what_the_hypotheses_count(world: str) -> None:
    spec = resolve("opd_analytic", TASKS, backbone=world, teachers="train")
    budgets = [teacher_spec(spec, task).budget.nfe for task in TASKS]
    assert budgets == [D] * 3
    # Teachers read no test prompt before the runs that decide.
    assert {teacher_spec(spec, task).evaluation.split for task in TASKS} == {"validation"}
    stated = read_hypotheses(FOLDER / "hypotheses.yaml")
    named = [h for h in stated.hypotheses if h.line.method == "opd_analytic"]
    assert len(named) == 7 and {h.line.teacher_nfe for h in named} == {sum(budgets)}


def test_hypotheses_are_those_of_the_protocol() -> None:
    stated = read_hypotheses(FOLDER / "hypotheses.yaml")
    assert {h.name.split()[0] for h in stated.hypotheses} == set(re.findall(r"\bH\d[a-b]?(?=:)", PROTOCOL))
    assert {h.margin for h in stated.hypotheses} == {0.0, 0.02} and stated.level == 0.05
    assert {world: len(stated.seeds(world)) for world in stated.worlds} == {"study-2": 10, "study-1": 3, "study-3": 3}
    selections = [s for h in stated.hypotheses for s in (h.line, h.minus) if isinstance(s, Selection)]
    assert {s.nfe for s in selections} == {D, 4 * D}
    tuned = {read_study(path).backbone for path in SWEEPS}
    assert tuned == {"study-1"} and stated.decided_in not in tuned


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_method_is_tuned_by_the_same_rules(path: Path) -> None:
    # A method is tuned before it has a recipe for the study's worlds, from its recipe on micro.
    study, first = (read_study(file).model_copy(update={"backbone": "micro"}) for file in (path, SWEEPS[0]))
    assert (study.budget, study.trials, study.seed_list, study.sampler, study.pruner) == (D, 20, [100], "tpe", "none")
    assert study.settings["evaluation.guidance_grid"] == first.settings["evaluation.guidance_grid"]
    for name in ("optimizer.lr", "optimizer.lr_end", "sampler.steps", "lora.rank", "lora.alpha"):
        ours, theirs = study.space[name], first.space[name]
        assert (ours.low, ours.high, ours.log, ours.choices) == (theirs.low, theirs.high, theirs.log, theirs.choices)
    (penalty,) = (axis for name, axis in study.space.items() if name in ("params.nft.kl", "params.anchor"))
    assert (penalty.low, penalty.high, penalty.log) == (1e-4, 1.0, True)
    # A rank of 16 has the scale of 64.
    chosen = dict(study.enqueue[0]) | {"lora.rank": 16, "lora.alpha": 32}
    small, large = study.run(chosen, 100).lora, study.run(dict(study.enqueue[0]), 100).lora
    assert small.alpha / small.rank == large.alpha / large.rank == 2
    assert study.run(chosen, 100).evaluation.split == "validation"


def test_the_cells_of_part_2_are_the_design_s() -> None:
    rows = [line.split(",") for line in (FOLDER / "part2" / "cells.csv").read_text().splitlines()]
    assert rows[0] == ["cell", "overlap", "angle", "tasks", "rank", "budget", "teachers", "world", "planes"]
    assert len(rows) == 37 and len({tuple(row[1:]) for row in rows}) == 37
    for column in range(1, 8):
        levels = [row[column] for row in rows[1:]]
        assert max(map(levels.count, levels)) - min(map(levels.count, levels)) <= 3


def tuning(name: str) -> dict:
    """What a study that tunes ended with, from its archive."""
    whole = members([FOLDER / "tuning" / f"{name}.tar.xz"], "summary.json")
    (text,) = (text for place, text in whole if len(place.parts) == 2)
    return json.loads(text)


@pytest.mark.parametrize("method", ["multi_reward", "opd_analytic", "cascade"])
def test_a_recipe_has_what_its_method_s_tuning_chose(method: str) -> None:
    summary = tuning(method)
    assert summary["trials"]["complete"] + summary["trials"]["fail"] == 20
    first, *others = summary["confirmed"]
    assert [len(row["runs"]) for row in summary["confirmed"]] == [3] * 4
    assert first["value"] >= max(row["value"] for row in others)
    # A recipe is for any tasks, so the cascade's order is in the command.
    ordered = re.findall(rf"{method}\.(params\.order=[^\"]*)", (FOLDER / "part1.sh").read_text())
    assert len(ordered) == (method == "cascade")
    spec = resolve(method, TASKS, 100, "study-2", overrides=["evaluation.points=[]", *ordered])
    tuned = resolve(method, TASKS, 100, "study-2", overrides=[
        "evaluation.points=[]", *(f"{key}={value}" for key, value in first["settings"].items())])  # fmt: skip
    assert spec == tuned
    if method == "multi_reward":
        teacher = resolve("single_task", ["ocr"], 100, "study-2")
        assert (teacher.optimizer, teacher.lora, teacher.sampler) == (spec.optimizer, spec.lora, spec.sampler)
        assert teacher.params | {"groups": None} == {key: spec.params[key] for key in teacher.params} | {"groups": None}
        assert teacher.params["groups"] == 3 * spec.params["groups"]


@pytest.mark.parametrize("method", ["multi_reward", "cascade"])
def test_a_long_line_has_the_best_of_its_five_trials(method: str) -> None:
    """The best setting of D, of both methods, so that part1.sh sets nothing but their budget."""
    summary = tuning(f"{method}_long")
    assert summary["trials"]["complete"] == 5
    best = max(summary["complete"], key=lambda trial: trial["values"])
    settings = [f"{key}={value}" for key, value in best["settings"].items() if key != "params.order"]
    assert resolve(method, TASKS, 100, "study-2") == resolve(method, TASKS, 100, "study-2", overrides=settings)


def asked_in(cwd: Path, **environment: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function of a script of the study and its words, that runs it in `cwd`."""
    options = {"capture_output": True, "text": True, "cwd": cwd, "env": os.environ | environment}
    return lambda script, *words: subprocess.run(["bash", FOLDER / script, *words], **options)


def test_the_whole_study_has_every_seed_and_every_cell(tmp_path: Path) -> None:
    """The commands of whole.sh, said instead of run, with the copies that it makes."""
    said = "".join(f'{name}() {{ printf "%s " {name} "$@"; echo; }}; ' for name in ("bash", "python", "bench"))
    to = tmp_path / "again"
    words = ["bash", "-c", f"{said} source {FOLDER / 'whole.sh'} {to}", FOLDER / "whole.sh"]
    told = subprocess.check_output(words, text=True, cwd=tmp_path)
    lines = [line.replace(f"{to}/", "").split() for line in told.splitlines()]
    copied = {path.relative_to(to) for path in to.rglob("*.*") if path.is_file()}
    published = {path.relative_to(FOLDER) for path in (*FOLDER.glob("*.*"), *(FOLDER / "part2").glob("*.*"))}
    # Everything that the scripts read and nothing that they write.
    assert copied == {path for path in published if path.suffix in (".py", ".sh", ".yaml") or path.name == "cells.csv"} - {Path("part2/tune.sh")}
    # The only commands that are not of the copies.
    assert [line[1] for line in lines if str(FOLDER) in " ".join(line)] == [f"{FOLDER}/trained_here.sh"]
    assert [line[0] for line in lines[:2]] == ["bash", "python"] and lines[1][1:] == ["-c", "import", "bench,", "statsmodels"]
    stated = read_hypotheses(FOLDER / "hypotheses.yaml")
    for script in ("part1.sh", "pack.sh"):
        given = [line[2:] for line in lines if line[1] == script]
        asked = [(world, int(seed)) for world, *seeds in given for seed in seeds if seed.isdigit()]
        assert sorted(asked) == sorted((world, seed) for world in stated.worlds for seed in stated.seeds(world))
    cells = [row.split(",")[0] for row in (FOLDER / "part2" / "cells.csv").read_text().splitlines()[1:]]
    for script in ("cell.py", "pack.py"):
        assert [line[2] for line in lines if line[1] == f"part2/{script}"] == cells
    places = [place for place, line in enumerate(lines) if line[1] in ("part2/pack.py", "part2/outcomes.py", "part2/page.py")]
    assert [lines[place][1] for place in places[-3:]] == ["part2/pack.py", "part2/outcomes.py", "part2/page.py"]


def test_runs_from_an_archive_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    world = tmp_path / "results" / "study" / "study-2"
    run = make_run(world, "opd_analytic", 0, 0.9)
    asked = asked_in(tmp_path)
    for found in (asked("trained_here.sh", "results"), asked("part1.sh", "study-2", "0"), asked("whole.sh", "again")):
        assert found.returncode == 2 and found.stderr.endswith("without its weights: move what was unpacked there, and start again\n")
    (run / "adapter").mkdir(exist_ok=True)
    (run / "adapter" / "adapter_model.safetensors").touch()
    assert asked("trained_here.sh", "results").returncode == 0 == asked("trained_here.sh", "nowhere").returncode


def test_scripts_of_the_study_say_how_they_are_used(tmp_path: Path) -> None:
    asked = asked_in(tmp_path)
    for script in ("whole.sh", "part1.sh", "pack.sh", "pack_study.sh", "trained_here.sh"):
        found = asked(script)
        use = found.stderr.removeprefix(f"usage: bash {FOLDER / script} ").strip()
        assert found.returncode == 2 and f"{script} {use}" in (FOLDER / script).read_text()
    assert asked("whole.sh", FOLDER).returncode == 2


def test_the_whole_study_names_a_python_without_bench(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    found = asked_in(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")("whole.sh", "again")
    assert found.returncode == 3 and found.stderr.endswith('pip install -e ".[dev]", and activate it\n')
    assert not (tmp_path / "again").exists()


def test_part_1_runs_the_protocol_s_lines(tmp_path: Path) -> None:
    """The commands of part1.sh, planned as the lines, budgets, points and seeds of the protocol's table."""
    (tmp_path / "bench").write_text('#!/bin/sh\nprintf "%s\\0" "$@" >> "$ASKED"; printf "\\n" >> "$ASKED"\n')
    (tmp_path / "bench").chmod(0o755)
    found = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": str(tmp_path / "asked")}
    subprocess.run(["bash", FOLDER / "part1.sh", "study-2", "0", "1"], env=found, check=True, cwd=tmp_path)
    planned = {}
    for line in (tmp_path / "asked").read_text().splitlines():
        words = line.split("\0")[:-1]
        given = dict(zip(words[1::2], words[2::2]))
        made = plan_comparison(
            given["--methods"].split(","), given["--tasks"].split(","), given["--backbone"], [int(given["--seeds"])],
            int(given["--budget"]), [], [value for word, value in pairwise(words) if word == "--set"],
            tmp_path / given["--results"],
        )  # fmt: skip
        assert words[0] == "compare" and made.split == "test" and made.grid == (0.5, 1, 2, 4, 8, 16)
        planned |= {(method, seed, made.budget): run.spec for (method, seed), run in made.runs.items()}
    thirds = (0.25, 0.3333, 0.5, 0.6667, 1.0)
    short = {"opd_analytic": (0.25, 0.5, 1.0), "multi_reward": (0.25, 0.5, 1.0), "cascade": thirds}
    points = {(method, D): at for method, at in short.items()}
    points |= {(method, 4 * D): (0.125, *thirds) for method in ("multi_reward", "cascade")}
    assert {(method, nfe, seed): spec.evaluation.points for (method, seed, nfe), spec in planned.items()} == {
        (*line, seed): at for line, at in points.items() for seed in (0, 1)
    }
    for (method, seed, nfe), spec in planned.items():
        assert (spec.method, spec.seed, spec.budget.nfe, list(spec.tasks)) == (method, seed, nfe, TASKS)
    assert set(planned["opd_analytic", 0, D].teachers.values()) == {"train"}
    assert list(planned["cascade", 0, D].params["order"]) == ["ocr", "pickscore", "geneval"]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.tar.xz")), ids=lambda path: path.name.partition(".")[0])
def test_runs_were_made_from_commits_that_have_the_protocol(path: Path) -> None:
    """Its text before the amendments has not changed since; nor had a run's code been edited."""
    found = [json.loads(row) for _, text in members([path], "provenance.jsonl") for row in text.splitlines()]
    assert found and not any(entry["uncommitted_diff"] for entry in found)
    for commit in {entry["commit"] for entry in found}:
        named = f"{commit}:{(FOLDER / 'PROTOCOL.md').relative_to(ROOT).as_posix()}"
        if subprocess.run(["git", "cat-file", "-e", commit], cwd=ROOT, capture_output=True).returncode:
            pytest.skip("needs the repository's history (git fetch --unshallow)")
        then = subprocess.run(["git", "show", named], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert then.split("## Amendments")[0] == PROTOCOL.split("## Amendments")[0]


def test_the_scores_are_those_of_the_archives() -> None:
    stored = pd.read_csv(FOLDER / "part1" / "scores.csv")
    (scores,) = scripts(FOLDER, "scores")
    made = scores.table(FOLDER / "part1")
    pd.testing.assert_frame_equal(stored, made, rtol=0, atol=1e-9)
    assert set(stored.groupby(["world", "seed"]).size()) == {7}
    archives = {path.name.partition(".")[0] for path in (FOLDER / "part1").glob("*.tar.xz")}
    assert archives == {f"{world}-s{seed}" for world, seed in stored[["world", "seed"]].itertuples(index=False)}


@pytest.mark.parametrize("path", sorted((FOLDER / "part1").glob("*.tar.xz")), ids=lambda path: path.name.partition(".")[0])
def test_scales_are_the_best_on_validation_prompts_and_teachers_the_seed_s_own(path: Path) -> None:
    world, seed = path.name.partition(".")[0].rsplit("-s", 1)
    table = pd.read_csv(FOLDER / "part1" / "tried.csv", keep_default_na=False)
    table = table[table["world"] == world]
    found = list(summaries([path]))
    compared = [summary for summary in found if "guidance" in summary]
    assert len(compared) == 5
    trained = table.drop_duplicates("run").set_index("run")["weights"]
    for summary in compared:
        hashes = {"student": trained[summary["folder"]], "base": "base"}
        for task, teacher in summary["teachers"].items():
            (own,) = [each["folder"] for each in found if each["method"] == "single_task" and list(each["models"]["student"]) == [task]]
            assert own.endswith(f"-s{seed}") and trained[own] == teacher["hash"]
            hashes[f"teacher {task}"] = teacher["hash"]
        for model, scales in summary["guidance"].items():
            for task, chosen in scales.items():
                of_model = table[(table["weights"] == hashes[model]) & (table["task"] == task)].sort_values("scale")
                assert of_model["scale"].tolist() == [0.5, 1, 2, 4, 8, 16]
                # The first of equal ones, which is the smallest.
                assert of_model.loc[of_model["score"].idxmax(), "scale"] == chosen, (summary["folder"], model, task)


def test_a_command_of_the_readme_repeats_a_stored_run() -> None:
    """Its settings are those of a run in the archive, so that its folder has the same name."""
    text = (FOLDER / "README.md").read_text()
    stored = {place.parent.name for place, _ in members([FOLDER / "part1" / "study-2-s0.tar.xz"], "spec.json")}
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("bench run ")]
    assert [words[3] for words in commands] == ["multi_reward", "opd_analytic", "opd_analytic"]
    specs = []
    for words in commands:
        given = dict(zip(words[2::2], words[3::2]))
        specs.append(resolve(
            given["--method"], given["--tasks"].split(","), int(given["--seeds"]), given["--backbone"],
            overrides=[given["--set"]], teachers=given.get("--teachers"),
        ))  # fmt: skip
    rl, taught, own = specs
    for spec in (rl, own):
        assert f"{spec.method}-{spec.digest(describe(spec.backbone).fingerprint())}-s0" in stored
    assert taught.model_copy(update={"teachers": own.teachers}) == own


def test_the_stored_teachers_are_those_of_their_seed() -> None:
    table = pd.read_csv(FOLDER / "part1" / "tried.csv", keep_default_na=False)
    for folder in (FOLDER / "part1" / "teachers").iterdir():
        world, seed = folder.name.rsplit("-s", 1)
        own = table[(table["world"] == world) & table["run"].str.fullmatch(f"single_task-.*-s{seed}")]
        hashes = own.groupby("model")["weights"].unique()
        assert sorted(path.name for path in folder.iterdir()) == sorted(TASKS)
        for task in TASKS:
            assert hashes[f"teacher {task}"].tolist() == [find_teacher("student", str(folder / task)).hash]


def test_worlds_of_the_study_fall_back_to_micro_s_recipes() -> None:
    assert [folder.name for folder in describe("study-1").recipes] == ["study", "recipes"]
    assert resolve("sft", TASKS, backbone="study-1").params == resolve("sft", TASKS).params


def test_signs_are_read_again_on_the_images_of_the_run(tmp_path: Path, monkeypatch) -> None:
    (signs,) = scripts(FOLDER, "read_signs")
    asked = []

    def run(command: list[str], **_) -> None:
        asked.append(command[3:])
        folder = Path(command[command.index("--adapter") + 1]).parent
        model = "base" if "base" in command else "student"
        of_run = json.loads(((tmp_path / "study-2" / "a") if model == "base" else folder).joinpath("summary.json").read_text())
        row = of_run["models"][model]["ocr"]
        row["rows"]["rapidocr_exact"] = [1.0, 1.0, 0.0, 0.0] * 2
        Path(command[-1]).write_text(json.dumps([row]))

    monkeypatch.setattr(signs.subprocess, "run", run)
    for name, level, nfe in (("a", 0.9, 1000), ("b", 0.4, 4000)):
        path = make_run(tmp_path / "study-2", "opd_analytic", 0, level, name=name) / "summary.json"
        summary = json.loads(path.read_text())
        summary["guidance"] = {"base": {"ocr": 4.0}, "student": {"ocr": 2.0}}
        path.write_text(json.dumps(summary))
        spec = json.loads((path.parent / "spec.json").read_text())
        spec["spec"]["budget"]["nfe"] = nfe
        (path.parent / "spec.json").write_text(json.dumps(spec))
    runs = results(tmp_path / "study-2")
    found = signs.table(runs, tmp_path)
    assert found["model"].tolist() == ["base", "student", "student"]
    for row, run_ in zip(found.to_dict("records"), [runs[0], *runs]):
        assert row["exact"] == pytest.approx(np.mean(run_.summary["models"][row["model"]]["ocr"]["rows"]["exact"]))
        assert row["rapidocr_exact"] == 0.5 and row["rapidocr_exact_low"] < 0.5 < row["rapidocr_exact_high"]
    assert [words[words.index("--guidance") + 1] for words in asked] == ["4", "2", "2"]
    assert signs.table(runs, tmp_path).equals(found) and len(asked) == 3  # made once
    stored = tmp_path / "t.csv"
    for seed, exact in (("0", 0.5), ("1", 0.25), ("0", 0.75)):  # a seed's rows replace its own alone, and the base's
        made = signs.merged(found.assign(seed=["", seed, seed], exact=exact), stored)
        made.to_csv(stored, index=False)
    assert list(made["seed"]) == ["", "0", "1", "0", "1"] and list(made["nfe"]) == [0, 1000, 1000, 4000, 4000]
    assert list(made["exact"]) == [0.75, 0.75, 0.25, 0.75, 0.25]
    (tmp_path / "b.json").write_text((tmp_path / "a.json").read_text())
    with pytest.raises(ValueError, match="student of b: these are not the images of the run"):
        signs.table(runs, tmp_path)


def test_rapidocr_has_read_what_the_scores_are_of() -> None:
    signs = pd.read_csv(FOLDER / "part1" / "rapidocr.csv", keep_default_na=False)
    scores = pd.read_csv(FOLDER / "part1" / "scores.csv")
    students = scores[scores["line"] != "base"].set_index(["world", "line", "seed", "training_nfe"])["ocr"].sort_index()
    read = signs[signs["model"] == "student"]
    assert len(read) and set(signs["model"]) == {"base", "student"}
    for row in read.to_dict("records"):
        spent = students[row["world"], row["method"], int(row["seed"])]  # cascades end on whole updates
        assert row["exact"] == pytest.approx(spent.loc[row["nfe"] : row["nfe"] * 1.01].item(), abs=1e-5)
    text = " ".join((FOLDER / "FINDINGS.md").read_text().split())
    # What the protocol promises: all lines of seeds 0 to 2.
    assert read.groupby(["method", "nfe"])["seed"].agg(set).map(sorted).tolist() == [["0", "1", "2"]] * 5
    means = signs.groupby(["method", "nfe"])[["rapidocr_exact", "exact"]].mean()
    lines = ("", 0), ("opd_analytic", D), ("multi_reward", 4 * D), ("multi_reward", D), ("cascade", 4 * D), ("cascade", D)
    values = [short(means.loc[line, name]) for name in ("rapidocr_exact", "exact") for line in lines]
    said = "{} of the base's signs in `study-2`, and over seeds 0 to 2 {} of distillation's, {} of long joint RL's, {} of joint RL's, {} of " \
           "the long cascade's and {} of the cascade's, where the world's own reader reads {}, {}, {}, {}, {} and {} "  # fmt: skip
    assert said.format(*values) in text
    assert means["rapidocr_exact"].rank().equals(means["exact"].rank()) and "The order of the six is the same." in text
    ((world, base),) = signs.loc[signs["model"] == "base", ["world", "exact"]].to_numpy()
    assert base == pytest.approx(scores.loc[(scores["world"] == world) & (scores["line"] == "base"), "ocr"].iloc[0], abs=1e-5)
