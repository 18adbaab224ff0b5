"""Training, resuming and scoring on a tiny random SD3 pipeline with every photographic scorer, all from disk."""

import json
from pathlib import Path

import pytest
import torch

from bench.errors import BenchError
from bench.runner import Session, execute
from bench.spec import describe, resolve
from methods.opd_analytic import OpdAnalytic
from tests.methods.conftest import shake

TASKS = ("geneval", "ocr", "pickscore")


@pytest.fixture(scope="module")
def settings(sd3_folder: Path, detector_folder: Path, clip_folder: Path, tmp_path_factory) -> dict:
    """Overrides that name teachers, scorers and prompts."""
    from bench.backbones.adapters import Shape

    home = tmp_path_factory.mktemp("photo")
    backbone = describe(str(sd3_folder)).load("cpu")
    for task in TASKS:
        backbone.adapters.add(task, Shape(2, 4.0))
        shake(backbone, task)
        backbone.adapters.save(task, home / "teachers" / task, base="tiny")
    prompts = home / "prompts"
    prompts.mkdir()
    for split, count in (("train", 20), ("validation", 2), ("test", 3)):
        (prompts / f"{split}.txt").write_text("".join(f'a {split} sign {i} saying "word {i}"\n' for i in range(count)))
    scorers = {
        "geneval": {"converted": str(detector_folder), "colours": str(clip_folder)},
        "ocr": {"prompts": str(prompts)},
        "pickscore": {"prompts": str(prompts), "model": str(clip_folder), "processor": str(clip_folder)},
    }
    overrides = [
        f"scorers={json.dumps(scorers)}", "evaluation.steps=1", "evaluation.split=validation", "evaluation.points=[]",
        "sampler.steps=2", "params.timestep_fraction=1", "params.trajectories=2", "lora.rank=2", "lora.alpha=4",
        "ema.every=1", "checkpoint_every=1",
    ]  # fmt: skip
    return {"teachers": str(home / "teachers"), "overrides": overrides, "backbone": str(sd3_folder)}


def test_distillation_on_photographs_from_end_to_end(settings: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tasks.geneval.task.HELD_OUT_PER_TAG", 1)  # the detector sees 800 x 800 pixels of anything
    overrides = [*settings["overrides"], "budget.updates=2"]
    spec = resolve("opd_analytic", list(TASKS), **{**settings, "overrides": overrides})
    whole = execute(spec, Session(tmp_path / "whole" / "results"))
    assert set(whole["models"]) == {"student", "base", *(f"teacher {task}" for task in TASKS)}
    assert {"official", "strict", "partial"} <= set(whole["models"]["student"]["geneval"]["rows"])
    backbone = describe(settings["backbone"]).load("cpu")
    session = Session(tmp_path / "cut" / "results")
    with monkeypatch.context() as patch:  # killed in the second update
        patch.setattr(OpdAnalytic, "after_update", _fail_second)
        with pytest.raises(BenchError, match="the power went"):
            execute(spec, session)
    resumed = execute(spec, session)
    assert resumed["models"] == whole["models"]
    for name, root in (("whole", tmp_path / "whole"), ("cut", tmp_path / "cut")):
        backbone.adapters.load(name, root / "results" / whole["folder"] / "adapter")
    assert backbone.adapters.delta_norm("whole") > 0
    assert all(map(torch.equal, backbone.adapters.parameters("whole"), backbone.adapters.parameters("cut")))


def _fail_second(self, lab) -> None:
    if lab.step == 1:
        raise BenchError("the power went")
