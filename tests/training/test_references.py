"""Evaluations of the base and the teachers: shipped ones are used where they are what would be measured, and are right."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.backbones.micro import descriptor
from bench.config.resolve import resolve
from bench.training.execute import Session, execute

SHIPPED = descriptor().evaluations


def summary(folder: Path, *more: str, tasks: tuple[str, ...] = ("geneval", "ocr", "pickscore")) -> tuple[dict, list[str]]:
    """A merge evaluated as every recipe evaluates, or with other settings; and the names of the cached evaluations."""
    spec = resolve("merge", [*tasks], overrides=[*more])
    made = execute(spec, Session(folder / "results"))
    return made, sorted(path.name for path in (folder / "results" / "cache").glob("evaluation-*.json"))


def shipped_for(folder: Path, split: str) -> dict:
    """The summary of a merge whose base and teachers are all shipped for a split.

    A changed scorer, task or base would ask for other files: ship them with it (see the model card).
    """
    made, measured = summary(folder, f"evaluation.split={split}")
    assert measured == []
    assert "references" not in made["cost"]["seconds"]
    for task, row in made["models"]["teacher ocr"].items():
        assert row["task"] == task and len(row["rows"]["reward"]) == len(row["strata"])
    return made


@pytest.mark.slow
def test_what_the_recipes_compare_with_is_shipped(tmp_path: Path) -> None:
    shipped_for(tmp_path, "test")


@pytest.mark.slow
def test_the_shipped_are_what_would_be_measured(tmp_path: Path, monkeypatch) -> None:
    """On another machine an image near a scorer's edge may be judged otherwise: at most one in fifty."""
    shipped = shipped_for(tmp_path / "a", "validation")
    monkeypatch.setattr("bench.training.references.References._kept", lambda *_: None)
    measured, files = summary(tmp_path / "b", "evaluation.split=validation")
    assert set(files) <= {path.name for path in SHIPPED.iterdir()} and len(files) == 12
    for model in ("base", "teacher geneval", "teacher ocr", "teacher pickscore"):
        for task, row in measured["models"][model].items():
            known = shipped["models"][model][task]
            assert known["strata"] == row["strata"] and known["headline"] == row["headline"]
            for metric, values in row["rows"].items():
                differ = np.abs(np.array(values, float) - np.array(known["rows"][metric], float)) > 0.02
                assert differ.mean() <= 0.02, (model, task, metric)


def test_other_settings_are_measured(tmp_path: Path) -> None:
    """One step instead of ten, and another guidance scale of a teacher, are other evaluations."""
    few = ("evaluation.steps=1", "evaluation.split=validation")
    made, measured = summary(tmp_path, *few, tasks=("ocr",))
    assert len(measured) == 2  # base and teacher
    assert not {*measured} & {path.name for path in SHIPPED.iterdir()}
    assert json.loads((tmp_path / "results" / "cache" / measured[0]).read_text())["task"] == "ocr"
    assert "references" in made["cost"]["seconds"]


def test_evaluations_say_how_far_they_are(tmp_path: Path) -> None:
    """Those of the student, and those of the base and the teacher, which come after the last update."""
    few = ("evaluation.steps=1", "evaluation.split=validation", "evaluation.batch=16", "evaluation.points=[]", "budget.updates=1")
    told = []
    spec = resolve("opd_analytic", ["ocr"], overrides=[*few, "params.trajectories=1", "sampler.steps=2"])
    made = execute(spec, Session(tmp_path / "results", listen=lambda _label, progress: told.append(progress)))
    count = len(made["models"]["student"]["ocr"]["strata"])
    said = [progress.doing for progress in told if progress.doing]
    assert len(told) - len(said) == 2  # the update and the evaluation
    assert [line for line in said if line.endswith(f", {count} of {count} images")] == [
        f"evaluating {model} on ocr, {count} of {count} images" for model in ("the student", "the base", "teacher-ocr")
    ]
    assert f"evaluating the base on ocr, 16 of {count} images" in said
    assert all(progress.scores is None and progress.step == 1 for progress in told if progress.doing)


def test_as_many_other_prompts_are_measured(tmp_path: Path, monkeypatch) -> None:
    """Those of a file may change under the same task and the same scorer."""
    from tasks.ocr.task import Ocr

    few = ("evaluation.steps=1", "evaluation.split=validation")
    honest = Ocr.prompts
    halves = (slice(0, 10), slice(10, 20))
    kept = []
    for i, half in enumerate(halves):
        monkeypatch.setattr(Ocr, "prompts", lambda self, split, half=half: honest(self, split)[half])
        made, measured = summary(tmp_path, *few, f"lora.rank={4 + i}", tasks=("ocr",))  # in one results folder
        kept.append(made["models"]["base"]["ocr"]["rows"]["reward"])
    assert len(measured) == 4
    assert kept[0] != kept[1]


def test_how_it_is_computed_makes_no_other_evaluation(tmp_path: Path) -> None:
    """Where and in what portions changes rounding only; the precision is the result's."""
    few = ("evaluation.steps=1", "evaluation.split=validation")
    _, plain = summary(tmp_path, *few, tasks=("ocr",))
    made, again = summary(tmp_path, *few, "lora.rank=4", "compute.batch=7", "compute.decode=sliced", tasks=("ocr",))
    assert again == plain and "references" not in made["cost"]["seconds"]
    _, other = summary(tmp_path, *few, "compute.precision=bfloat16", tasks=("ocr",))
    assert len(other) == 2 * len(plain)
