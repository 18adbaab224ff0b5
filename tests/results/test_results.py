"""Runs as frames and objects, and students in stock diffusers: the same images as through `bench eval`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from typer.testing import CliRunner

from bench.api.task import Prompt
from bench.cli.app import app
from bench.cli.evaluate import score_adapter
from bench.cli.export import export
from bench.config.resolve import describe, resolve
from bench.errors import DamagedError, MissingError, UsageError
from bench.registry import find
from bench.results import Result, evaluations, metrics, results, scores, trials
from bench.training.evaluate import initial_noise
from bench.training.execute import Session, execute
from tests.report.synthetic import TASKS, make_run, make_study

STEPS, GUIDANCE = 2, 3.0


def of_one(scorers: dict) -> dict:
    return {name: own for name, own in scorers.items() if name in ("pickscore", "features")}


@pytest.fixture(scope="module")
def photo_run(sd3_folder: Path, photo_scorers: dict, tmp_path_factory) -> Result:
    """A student on tiny SD3 that one step with a large learning rate has moved far."""
    root = tmp_path_factory.mktemp("exports") / "results"
    settings = [
        f"scorers={json.dumps(of_one(photo_scorers))}", f"evaluation.steps={STEPS}", "evaluation.split=validation",
        "evaluation.points=[]", "sampler.steps=2", "lora.rank=2", "ema.every=1", "ema.decay=0", "budget.updates=1",
        "params.groups=1", "params.group_size=2", "optimizer.lr=0.3",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        task = find("task", "pickscore")
        prompts = task.prompts
        patch.setattr(task, "prompts", lambda self, split: prompts(self, split)[:3])
        spec = resolve("single_task", ["pickscore"], backbone=str(sd3_folder), overrides=settings)
        summary = execute(spec, Session(root))
    return Result(root / summary["folder"])


def drawn(pipeline: DiffusionPipeline, prompts: list[Prompt], noise: torch.Tensor) -> np.ndarray:
    """What stock diffusers draws, uint8 [B, H, W, 3]."""
    side = noise.shape[-1] * pipeline.vae_scale_factor
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [prompt.text for prompt in prompts], num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise,
        height=side, width=side, max_sequence_length=128, output_type="np",
    ).images  # fmt: skip
    return (images * 255).round().astype(np.uint8)


def test_stock_diffusers_draws_what_bench_eval_draws(
    photo_run: Result, sd3_folder: Path, photo_scorers: dict, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = find("task", "pickscore")
    prompts = task.prompts
    monkeypatch.setattr(task, "prompts", lambda self, split: prompts(self, split)[:3])
    overrides = [f"scorers={json.dumps(of_one(photo_scorers))}"]
    folder, view = str(photo_run.weights), tmp_path / "images"
    score_adapter(folder, ["pickscore"], str(sd3_folder), f"{GUIDANCE:g}", STEPS, "validation", overrides, None, view)
    ours = np.stack([np.asarray(Image.open(path)) for path in sorted(view.rglob("samples/*.png"))]).astype(int)
    backbone = describe(str(sd3_folder)).load("cpu")
    shown = task("photo", photo_scorers["pickscore"]).prompts("validation")
    noise = initial_noise(backbone, "pickscore", "validation", [(k, 0) for k in range(len(shown))])
    optional = {"text_encoder_3": None, "tokenizer_3": None}
    theirs = drawn(photo_run.pipeline(**optional), shown, noise).astype(int)
    assert ours.shape == theirs.shape and len(ours) == len(shown) > 1
    assert np.abs(ours - theirs).max() <= 1 and (ours == theirs).mean() > 0.99
    base = drawn(DiffusionPipeline.from_pretrained(sd3_folder, **optional), shown, noise).astype(int)
    assert np.abs(ours - base).mean() > 1
    # Merged, saved and loaded again as a whole.
    photo_run.pipeline(merged=True, **optional).save_pretrained(tmp_path / "merged")
    whole = drawn(DiffusionPipeline.from_pretrained(tmp_path / "merged", **optional), shown, noise).astype(int)
    assert np.abs(whole - theirs).max() <= 1
    assert not any("lora" in name for name, _ in photo_run.pipeline(merged=True, **optional).transformer.named_parameters())


def test_an_export_has_a_card_with_the_scores(photo_run: Result, tmp_path: Path) -> None:
    words = ["export", str(photo_run.folder), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "README.md").read_text()
    student = photo_run.scores.query("model == 'student' and headline").iloc[0]
    assert f"| pickscore | {student['metric']} | {student['value']:.3f}" in text
    assert "Single-task RL on pickscore" in text and "- lora" in text and 'load_lora_weights("THIS FOLDER")' in text
    assert str(photo_run.folder.parent) not in text  # nothing of this machine
    loaded = DiffusionPipeline.from_pretrained(photo_run.spec["backbone"], text_encoder_3=None, tokenizer_3=None)
    loaded.load_lora_weights(tmp_path / "out")
    with pytest.raises(Exception, match="exists; choose a new folder"):
        CliRunner().invoke(app, words, catch_exceptions=False, standalone_mode=False)


def test_frames_have_what_the_records_have(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "opd_analytic", 3, 0.7)
    make_run(tmp_path, "sft", 0, state="unfinished")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss/ocr": 0.5, "evaluations": {"training": 10}}\n')
    found = {run.folder.name: run for run in results(tmp_path)}
    assert len(found) == 2
    run = found[folder.name]
    frame = scores(found.values())
    assert set(frame["model"]) == {"student", "base", *(f"teacher {task}" for task in TASKS)}
    assert set(frame["method"]) == {"opd_analytic"} and set(frame["seed"]) == {3}
    row = run.summary["models"]["student"]["ocr"]
    (own,) = frame.query("model == 'student' and task == 'ocr' and headline").to_dict("records")
    assert own["value"] == pytest.approx(np.mean(row["rows"]["exact"])) and own["images"] == 8
    assert own["low"] <= own["value"] <= own["high"]
    assert frame["guidance"].isna().all()
    summary = json.loads((folder / "summary.json").read_text())
    summary["guidance"] = {model: dict.fromkeys(TASKS, 2) for model in summary["models"]} | {"base": dict.fromkeys(TASKS, 8.0)}
    (folder / "summary.json").write_text(json.dumps(summary))
    frame = scores([Result(folder)])
    assert set(frame.query("model == 'base'")["guidance"]) == {8} and set(frame.query("model != 'base'")["guidance"]) == {2}
    along = evaluations([run])
    assert sorted(set(along["share"])) == [0.5, 1.0] and len(along.query("headline")) == 4
    assert metrics([run]).to_dict("records") == [
        {"step": 1, "loss/ocr": 0.5, "evaluations.training": 10, "run": folder.name, "method": "opd_analytic",
         "backbone": "micro", "seed": 3}
    ]  # fmt: skip
    study = trials(make_study(tmp_path))
    assert len(study) == 4 and {"trial", *TASKS, "optimizer.lr", "params.flag", "params.size"} == set(study)


def test_damaged_records_are_named_and_nothing_is_exported(tmp_path: Path) -> None:
    runs = []
    for k, spoil in enumerate((
        lambda s: s.update(models=[]), lambda s: s["models"]["student"]["ocr"]["rows"].update(exact=["a"] * 8),
        lambda s: s["models"]["student"]["ocr"]["rows"].update(exact=[1.0]), lambda s: s.pop("updates"),
    )):  # fmt: skip
        run = make_run(tmp_path / str(k), "sft", 0)
        summary = json.loads((run / "summary.json").read_text())
        spoil(summary)
        (run / "summary.json").write_text(json.dumps(summary))
        (run / "adapter").mkdir()
        runs.append(run)
    for run in runs[:3]:
        with pytest.raises(DamagedError, match=r"summary\.json has invalid contents"):
            scores([Result(run)])
    with pytest.raises(DamagedError, match="updates' is missing"):
        export(runs[3], tmp_path / "out", merged=False)
    assert not (tmp_path / "out").exists()
    assert list(scores([]).columns) == list(scores([Result(make_run(tmp_path, "merge", 0))]).columns)
    with pytest.raises(MissingError, match="has not finished"):
        trials(tmp_path)


def test_an_export_leads_nowhere_else(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sft", 0)
    (run / "adapter").mkdir()
    with pytest.raises(UsageError, match="in the run's own folder"):
        export(run, run / "adapter" / "out", merged=False)
    (run / "adapter" / "adapter_config.json").symlink_to("/etc/hostname")
    with pytest.raises(UsageError, match="is a symbolic link"):
        export(run, tmp_path / "out", merged=False)


def test_what_cannot_be_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'micro' is no pipeline of diffusers"):
        Result(make_run(tmp_path, "sft", 0)).pipeline()
    unfinished = make_run(tmp_path, "sft", 1, state="unfinished")
    spec = json.loads((unfinished / "spec.json").read_text())
    spec["spec"]["backbone"] = "hub:owner/name"
    (unfinished / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(MissingError, match="has not finished"):
        Result(unfinished).pipeline()
