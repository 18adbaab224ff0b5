"""Merging teachers that are not alike: other layers, other kinds, other files."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.config.resolve import describe, resolve
from bench.errors import UsageError
from bench.store.run import Run
from bench.training.execute import Session, execute
from bench.weights.hub import DIFFUSERS_FILE
from methods.merging import averaged, merge_teachers
from tests.backbones.adapter_makers import by_peft, in_peft, untouched
from tests.backbones.test_adapter_files import by_diffusers, made
from tests.backbones.test_adapter_kinds import KINDS, PLAIN

pytestmark = pytest.mark.usefixtures("few_prompts")

TEACHERS = {
    "one": PLAIN | {"use_rslora": True, "target_modules": ["attn.to_q", "attn.to_k"]},
    "two": PLAIN | {"alpha_pattern": {"to_v": 9}, "target_modules": ["attn.to_q", "attn.to_v"]},
    "three": KINDS["DoRA"] | {"target_modules": ["attn.to_k"]},
}


def laboratory(micro, tmp_path: Path) -> tuple[SimpleNamespace, dict]:
    """A student without a shape yet beside three teachers, and the mean of the changes that peft's own merges make."""
    base = untouched(micro)
    before, mean = base.state_dict(), {}
    for name, settings in TEACHERS.items():
        folder = by_peft(base, tmp_path / name, **settings)
        after = in_peft(base, folder).merge_and_unload().state_dict()
        mean = {key: mean.get(key, 0) + (after[key] - before[key]) / len(TEACHERS) for key in before}
        micro.adapters.load(name, folder)
    notes: dict[str, float] = {}
    lab = SimpleNamespace(
        backbone=micro, teachers={name: name for name in TEACHERS}, notes=notes, note=notes.__setitem__
    )
    return lab, {key.removesuffix(".weight"): change for key, change in mean.items() if change.abs().max() > 0}


def test_the_mean_of_unlike_teachers_is_that_of_their_weights(micro, tmp_path: Path) -> None:
    lab, mean = laboratory(micro, tmp_path)
    width = max(min(change.shape) for change in mean.values())
    micro.adapters.add(STUDENT, Shape(width, 2.0 * width, ("attn.to_q", "attn.to_k", "attn.to_v", "ff.net.2")))
    merge_teachers(lab, partial(averaged, weights=dict.fromkeys(TEACHERS, 1.0)))
    assert lab.notes["energy_kept"] == pytest.approx(1)
    for layer, delta in micro.adapters.deltas(STUDENT).items():
        torch.testing.assert_close(delta, mean.get(layer, torch.zeros_like(delta)), rtol=1e-3, atol=1e-5)


def test_a_student_without_a_teachers_layers_is_told_so(micro, tmp_path: Path) -> None:
    lab, _ = laboratory(micro, tmp_path)
    micro.adapters.add(STUDENT, Shape(4, 8.0, ("attn.to_q", "attn.to_k")))
    with pytest.raises(UsageError, match=r"cannot represent .* weight changes \(first: .*to_v\): lora\.targets"):
        merge_teachers(lab, partial(averaged, weights=dict.fromkeys(TEACHERS, 1.0)))


def test_teachers_come_from_any_file(micro, tmp_path: Path) -> None:
    """A folder of diffusers' format and a single file teach as peft's folders do."""
    base = untouched(micro)
    results = []
    for task, place in (("ocr", "folder"), ("geneval", "file")):
        tensors, config = made(base, **KINDS["rank-stabilised"] | {"r": 3 if task == "ocr" else 2})
        by_diffusers(tmp_path / place, tensors, config)
        micro.adapters.load(task, tmp_path / place)
        micro.adapters.save(task, tmp_path / "peft" / task)
        (tmp_path / "peft" / task / DIFFUSERS_FILE).unlink()
    (tmp_path / "file" / DIFFUSERS_FILE).rename(tmp_path / "file" / "style.safetensors")
    others = {"ocr": str(tmp_path / "folder"), "geneval": str(tmp_path / "file" / "style.safetensors")}
    for name, given in (("peft", []), ("others", [f"teachers={json.dumps(others)}"])):
        session = Session(tmp_path / name / "results")
        overrides = ["evaluation.steps=1", "lora.rank=5", *given]
        spec = resolve("merge", ["geneval", "ocr"], overrides=overrides, teachers=str(tmp_path / "peft"))
        summary = execute(spec, session)
        (row,) = Run(session.root, spec, describe("micro").fingerprint()).rows("metrics.jsonl")
        results.append((summary["models"]["student"], row["energy_kept"]))
    assert results[0] == results[1]
    assert results[0][1] == pytest.approx(1)
    assert StableDiffusion3Pipeline.lora_state_dict(session.root / summary["folder"] / "adapter")
