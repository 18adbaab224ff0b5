"""A pipeline's own scheduler is followed, or refused by the name of what is not: compared with stock diffusers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from bench.backbones.scheduler_files import FILE
from bench.backbones.sd3 import descriptor
from bench.config.compute import Compute
from bench.config.resolve import resolve
from bench.errors import MissingError, UsageError
from bench.sampler.levels import FlowLevels
from bench.sampler.rollout import Sampler, euler, rollout
from bench.sampler.schedule import make_schedule
from bench.training.execute import Session, execute
from bench.training.loop import Loop


def with_scheduler(folder: Path, target: Path, **fields) -> str:
    """A copy of a pipeline whose scheduler says these fields (None: does not say them)."""
    shutil.copytree(folder, target)
    config = json.loads((target / FILE).read_text()) | fields
    kept = {name: value for name, value in config.items() if value is not None}
    (target / FILE).write_text(json.dumps(kept))
    return str(target)


def both(folder: str, sampler: Sampler, steps: int) -> tuple[Tensor, Tensor]:
    """Latents of the same noise: ours, and the stock pipeline's."""
    backbone = descriptor(folder).load("cpu")
    noise = backbone.noise(1, torch.Generator().manual_seed(0))
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    side = noise.shape[-1] * pipeline.vae_scale_factor
    theirs = pipeline(
        "a cat", num_inference_steps=steps, guidance_scale=4.5, latents=noise, output_type="latent", height=side,
        width=side, max_sequence_length=128,
    ).images  # fmt: skip
    conditioning = backbone.encode(["a cat"])
    field = lambda x, sigma: backbone.velocity(x, sigma, conditioning, None, 4.5)
    return rollout(field, noise, sampler, torch.Generator()).final, theirs


@pytest.mark.parametrize(("said", "shift"), [(1.0, 1.0), (5.5, 5.5), (None, 1.0), (3, 3.0)])
@pytest.mark.parametrize("steps", [1, 4, 11])
def test_the_pipelines_shift_gives_diffusers_pictures(sd3_folder, tmp_path, said, shift, steps) -> None:
    folder = with_scheduler(sd3_folder, tmp_path / "p", shift=said)
    levels = descriptor(folder).levels_at(Compute())
    assert levels.shift == shift
    ours, theirs = both(folder, euler(levels, steps), steps)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if shift != 3 and steps > 1:
        other, _ = both(folder, euler(FlowLevels(3.0), steps), steps)
        assert (other - theirs).abs().max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {"use_dynamic_shifting": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"invert_sigmas": True},
        {"shift_terminal": 0.1},
        {"stochastic_sampling": True},
        {"num_train_timesteps": 500},
        {"shift": "3"},
        {"shift": -1},
        {"shift": True},
        {"shift": 1e-300},
        {"shift": 10**400},
        {"shift": 101},
        {"_class_name": "FlowMatchHeunDiscreteScheduler"},
    ],
    ids=lambda fields: next(iter(fields)) + str(next(iter(fields.values())))[:32],
)
def test_what_is_not_followed_is_refused_by_its_name(sd3_folder: Path, tmp_path: Path, fields: dict) -> None:
    folder = with_scheduler(sd3_folder, tmp_path / "p", **fields)
    named = next(iter(fields)) if "_class_name" not in fields else "FlowMatchHeunDiscreteScheduler"
    with pytest.raises(UsageError, match=rf"scheduler_config\.json.*{named}") as refused:
        resolve("opd_analytic", ["ocr"], backbone=folder, teachers="train")
    assert len(str(refused.value)) < 300 + len(folder)


def test_the_scheduler_that_the_index_names_counts_too(sd3_folder: Path, tmp_path: Path) -> None:
    folder = with_scheduler(sd3_folder, tmp_path / "p")
    index = tmp_path / "p" / "model_index.json"
    kind = "FlowMatchHeunDiscreteScheduler"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"scheduler": ["diffusers", kind]}))
    with pytest.raises(UsageError, match=rf"model_index\.json: the scheduler is {kind}"):
        descriptor(folder)


def test_a_damaged_or_missing_scheduler_is_named(sd3_folder: Path, tmp_path: Path) -> None:
    folder = with_scheduler(sd3_folder, tmp_path / "p")
    (tmp_path / "p" / FILE).write_text("{")
    with pytest.raises(UsageError, match=r"scheduler_config\.json is not JSON"):
        descriptor(folder)
    (tmp_path / "p" / FILE).unlink()
    with pytest.raises(MissingError, match=r"cannot be read: .*scheduler_config\.json"):
        descriptor(folder)


def test_runs_of_a_pipeline_with_another_shift_are_other_runs(sd3_folder: Path, tmp_path: Path) -> None:
    from bench.hashing import sampled_hash

    other = Path(with_scheduler(sd3_folder, tmp_path / "p", shift=1.0))
    assert descriptor(str(other)).fingerprint() != descriptor(str(sd3_folder)).fingerprint()
    files = [p for p in sd3_folder.rglob("*") if p.suffix in (".safetensors", ".json")]
    assert descriptor(str(sd3_folder)).fingerprint() == sampled_hash(files)


def test_a_pipeline_of_another_class_is_named(sd3_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "flux"
    shutil.copytree(sd3_folder, folder)
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "KolorsPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"holds a KolorsPipeline, .*StableDiffusion3Pipeline") as refused:
        resolve("opd_analytic", ["ocr"], backbone=str(folder), teachers="train")
    assert "licence" not in str(refused.value)


SHORT = ["budget={updates: 1}", "params.trajectories=1", "evaluation.split=validation", "evaluation.points=[]"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], make_schedule(4, 3.0)),
        (["sampler.shift=1.5"], make_schedule(4, 1.5)),
        (["sampler.table=once"], make_schedule(4, 3.0, "once")),
        (["sampler.shift=1.5", "evaluation.shift=6"], make_schedule(4, 6.0)),
        (["sampler.table=once", "evaluation.table=diffusers"], make_schedule(4, 3.0)),
        (["evaluation.shift=2"], make_schedule(4, 2.0)),
    ],
)
def test_training_and_evaluation_visit_the_sigmas_that_are_said(tmp_path, monkeypatch, settings, expected) -> None:
    seen = []
    honest = Loop.evaluate
    monkeypatch.setattr(
        Loop, "evaluate", lambda self, *a, **k: (seen.append(self.evaluation_sampler), honest(self, *a, **k))[1]
    )
    spec = resolve("opd_analytic", ["ocr"], overrides=[*SHORT, "evaluation.steps=4", *settings])
    execute(spec, Session(tmp_path / "results"))
    assert {sampler.schedule for sampler in seen} == {expected}


def test_unsaid_sigmas_leave_a_runs_name_alone() -> None:
    plain = resolve("opd_analytic", ["ocr"])
    assert not {"shift", "table"} & plain.record()["evaluation"].keys()
    shifted = resolve("opd_analytic", ["ocr"], overrides=["sampler.shift=1.5"])
    assert shifted.record()["evaluation"]["shift"] == 1.5
    again = resolve("opd_analytic", ["ocr"], overrides=["sampler.shift=1.5", "evaluation.shift=1.5"])
    assert again.digest("x") == shifted.digest("x")


def test_t5_reads_as_many_tokens_as_are_said(sd3_folder: Path, tmp_path: Path) -> None:
    """128 unless said, and then what the stock pipeline encodes at that length."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(0)
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    width = pipeline.transformer.config.joint_attention_dim
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -1.0),
        *((c, -2.0) for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    pipeline.register_modules(
        tokenizer_3=T5Tokenizer(vocab=letters),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=len(letters), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ).eval(),
    )
    pipeline.save_pretrained(tmp_path / "t5")
    cache, kept = tmp_path / "cache", {}
    for tokens in (None, 256, 20):
        compute = Compute(max_sequence_length=tokens)
        backbone = descriptor(str(tmp_path / "t5")).load("cpu", compute, cache)
        kept[tokens] = backbone.encode(["a small cat on a mat"])["sequence"]
        length = tokens or 128
        assert kept[tokens].shape[1] == 77 + length
        theirs, *_ = pipeline.encode_prompt("a small cat on a mat", None, None, max_sequence_length=length)
        torch.testing.assert_close(kept[tokens], theirs, rtol=1e-5, atol=1e-5)
        assert descriptor(str(tmp_path / "t5")).size(compute).network.prompt[1][1][0] == 77 + length
    again = descriptor(str(tmp_path / "t5")).load("cpu", Compute(), cache)  # what was kept for 20 tokens is not taken
    torch.testing.assert_close(again.encode(["a small cat on a mat"])["sequence"], kept[None], rtol=0, atol=0)


def test_a_model_of_published_size_has_sensible_defaults() -> None:
    spec = resolve("opd_analytic", ["ocr"], backbone="sd3")
    assert (spec.compute.resolution, spec.compute.precision, spec.compute.gradient_checkpointing) == (
        512,
        "bfloat16",
        True,
    )
    assert spec.sampler.guidance == spec.evaluation.guidance == 4.5
    assert spec.device == ("cuda" if torch.cuda.is_available() else "cpu")
    rl = resolve("single_task", ["ocr"], backbone="sd3")
    assert (rl.sampler.kernel, rl.sampler.guidance, rl.params["nft"]["chunk"]) == ("dpm2", 1.0, 9)
    grpo = resolve("multi_reward", ["ocr", "geneval"], backbone="sd3", overrides=["params.engine=grpo"])
    assert (grpo.sampler.kernel, grpo.sampler.eta, grpo.sampler.guidance) == ("flow_sde", 0.7, 4.5)
    assert resolve("opd_ppo", ["ocr"], backbone="sd3").sampler.kernel == "flow_sde"
    told = resolve("opd_analytic", ["ocr"], backbone="sd3", overrides=["compute.resolution=768", "device=cpu"])
    assert (told.compute.resolution, told.device) == (768, "cpu")


def test_a_gpu_is_chosen_where_there_is_one(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve("opd_analytic", ["ocr"], backbone="sd3").device == "cuda"
    assert resolve("opd_analytic", ["ocr"]).device == "cpu"  # micro is at home there, and its runs keep their names


def test_a_tiny_pipeline_is_computed_as_it_is(sd3_folder: Path) -> None:
    spec = resolve("opd_analytic", ["ocr"], backbone=str(sd3_folder), teachers="train")
    assert (spec.compute.resolution, spec.compute.precision, spec.sampler.guidance) == (None, "float32", 4.5)
