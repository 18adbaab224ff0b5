"""What a run leaves is an adapter to stock diffusers and stock peft as well, and a place for a student to start from."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open

from bench.api.task import Prompt
from bench.backbones.adapters import CONFIG_FILE, WEIGHTS_FILE, Shape, ending, read_adapter
from bench.backbones.sd3 import SD3, descriptor
from bench.config.resolve import describe, resolve
from bench.errors import UsageError
from bench.sampler.levels import FlowLevels
from bench.sampler.rollout import euler
from bench.training.evaluate import pictures
from bench.training.execute import Session, execute
from bench.training.start import exact, read_start
from bench.weights.hub import DIFFUSERS_FILE, model_name
from tests.backbones.adapter_makers import by_peft, in_peft, untouched, velocity
from tests.backbones.test_adapter_kinds import KINDS, PLAIN
from tests.backbones.test_sd3 import Dark
from tests.methods.conftest import shake

pytestmark = pytest.mark.usefixtures("few_prompts")

STEPS, GUIDANCE, PROMPT = 3, 4.5, "a photo of a red circle"


def in_pipeline(
    model: Path, adapter: Path | None, noise: torch.Tensor, mixed: dict[Path, float] | None = None
) -> torch.Tensor:
    """The picture that diffusers draws from the noise, as its users would have it drawn; `mixed` are weighted adapters."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(model, text_encoder_3=None, tokenizer_3=None)
    if adapter:
        pipeline.load_lora_weights(adapter)
    if mixed:
        for folder in mixed:
            pipeline.load_lora_weights(folder, adapter_name=folder.name)
        pipeline.set_adapters([folder.name for folder in mixed], adapter_weights=list(mixed.values()))
    side = noise.shape[-1] * pipeline.vae_scale_factor
    return pipeline(
        PROMPT, negative_prompt="", num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise, height=side,
        width=side, max_sequence_length=128, output_type="pt",
    ).images  # fmt: skip


def here(backbone, adapter: str | None, noise: torch.Tensor) -> torch.Tensor:
    return pictures(backbone, [Prompt(PROMPT)], noise, adapter, euler(FlowLevels(3.0), STEPS), GUIDANCE)


@pytest.mark.parametrize("kind", ["ours", *KINDS])
def test_diffusers_draws_our_pictures(sd3_folder: Path, tmp_path: Path, kind: str) -> None:
    backbone = descriptor(str(sd3_folder)).load("cpu")
    noise = backbone.noise(1, torch.Generator().manual_seed(3))
    base = untouched(backbone)
    if kind == "ours":
        backbone.adapters.add("student", Shape(4, 7.123456), seed=2)
        shake(backbone, "student")
    else:
        backbone.adapters.load("student", by_peft(base, tmp_path / "theirs", **KINDS[kind]))
    backbone.adapters.save("student", tmp_path / "ours", base=model_name(backbone.source))
    ours = here(backbone, "student", noise)
    torch.testing.assert_close(ours, in_pipeline(sd3_folder, tmp_path / "ours", noise), rtol=0, atol=1e-4)
    assert (ours - in_pipeline(sd3_folder, None, noise)).abs().max() > 1e-3
    torch.testing.assert_close(
        velocity(backbone, in_peft(base, tmp_path / "ours")), velocity(backbone, "student"), rtol=1e-5, atol=1e-5
    )


def test_diffusers_sets_the_weights_of_a_student_for_all_weights(sd3_folder: Path, tmp_path: Path) -> None:
    """From the adapters of its corners, at weights that were never saved (docs/tutorials/fronts.md)."""
    backbone = descriptor(str(sd3_folder)).load("cpu")
    noise = backbone.noise(1, torch.Generator().manual_seed(3))
    adapters = backbone.adapters
    adapters.add("student", Shape(4, 7.123456), seed=2)
    shake(backbone, "student")
    corners = {tmp_path / "a": (0.3, [1.0, 1.0, 0.0, 0.0]), tmp_path / "b": (0.7, [0.0, 0.0, 1.0, 1.0])}
    for folder, (_, gate) in corners.items():
        adapters.gate("student", gate)
        adapters.save("student", folder)
    adapters.gate("student", [0.3, 0.3, 0.7, 0.7])
    ours = here(backbone, "student", noise)
    mixed = {folder: weight for folder, (weight, _) in corners.items()}
    torch.testing.assert_close(ours, in_pipeline(sd3_folder, None, noise, mixed), rtol=0, atol=1e-4)
    assert (ours - in_pipeline(sd3_folder, tmp_path / "a", noise)).abs().max() > 1e-3


def test_the_two_files_hold_the_same_tensors_once_each(micro, tmp_path: Path) -> None:
    micro.adapters.add("student", Shape(4, 6.5), seed=2)
    shake(micro, "student")
    micro.adapters.save("student", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([CONFIG_FILE, WEIGHTS_FILE, DIFFUSERS_FILE])
    with safe_open(tmp_path / DIFFUSERS_FILE, "pt") as theirs, safe_open(tmp_path / WEIGHTS_FILE, "pt") as pefts:
        told = json.loads(theirs.metadata()["lora_adapter_metadata"])
        keys = {key.removeprefix("transformer.") for key in theirs.keys()}  # noqa: SIM118
        assert keys == {key.removeprefix("base_model.model.") for key in pefts.keys()}  # noqa: SIM118
        for key in keys:
            first = theirs.get_tensor(f"transformer.{key}")
            assert torch.equal(first, pefts.get_tensor(f"base_model.model.{key}"))
    assert (told["transformer.r"], told["transformer.lora_alpha"]) == (4, 6.5)
    (tmp_path / CONFIG_FILE).unlink()
    (tmp_path / WEIGHTS_FILE).unlink()
    micro.adapters.load("alone", tmp_path)
    torch.testing.assert_close(velocity(micro, "alone"), velocity(micro, "student"), rtol=0, atol=0)


def test_saving_twice_gives_the_same_bytes_and_clears_what_a_kill_left(micro, tmp_path: Path) -> None:
    micro.adapters.add("student", Shape(4, 6.5), seed=2)
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        (folder / ".adapter_config.json.0a1b2c3d.tmp").write_text("half")
        micro.adapters.save("student", folder, "micro")
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_a_runs_adapter_is_one_to_diffusers_and_peft(sd3_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bench.training.execute.load_tasks", lambda names, *_: {name: Dark("photo") for name in names})
    monkeypatch.setattr(Dark, "name", "ocr")
    backbone = descriptor(str(sd3_folder)).load("cpu")
    base = untouched(backbone)
    by_peft(base, tmp_path / "teachers" / "ocr", **KINDS["rank-stabilised"])
    overrides = ["evaluation.steps=1", "evaluation.split=validation", "sampler.steps=2", "params.timestep_fraction=1"]
    overrides += ["budget.updates=2", "params.trajectories=2", "lora.rank=2", "lora.alpha=5", "ema.every=1"]
    overrides += ["optimizer.lr=0.05", "scorers.features.model=none"]
    spec = resolve("opd_analytic", ["ocr"], 0, str(sd3_folder), None, overrides, str(tmp_path / "teachers"))
    session = Session(tmp_path / "results")
    folder = session.root / execute(spec, session)["folder"] / "adapter"
    assert json.loads((folder / CONFIG_FILE).read_text())["base_model_name_or_path"] == str(sd3_folder)
    backbone.adapters.load("student", folder)
    noise = backbone.noise(1, torch.Generator().manual_seed(5))
    ours = here(backbone, "student", noise)
    torch.testing.assert_close(ours, in_pipeline(sd3_folder, folder, noise), rtol=0, atol=1e-4)
    assert (ours - here(backbone, None, noise)).abs().max() > 1e-3
    torch.testing.assert_close(
        velocity(backbone, in_peft(base, folder)), velocity(backbone, "student"), rtol=1e-5, atol=1e-5
    )


def test_the_base_is_named_as_other_tools_find_it(sd3_folder: Path, tmp_path: Path, monkeypatch) -> None:
    assert model_name("hub:stabilityai/stable-diffusion-3.5-medium") == "stabilityai/stable-diffusion-3.5-medium"
    assert model_name(str(sd3_folder)) == str(sd3_folder)
    assert model_name("micro") == "micro"
    monkeypatch.chdir(sd3_folder.parent)
    assert model_name(sd3_folder.name) == str(sd3_folder)
    assert describe("micro").load("cpu").source == "micro"
    assert descriptor(str(sd3_folder)).load("cpu").source == str(sd3_folder)


def starting(folder: Path, *more: str):
    return resolve("single_task", ["ocr"], overrides=[f"lora.start={folder}", *more]).lora


@pytest.mark.parametrize("alpha", [7.123456, 0.1 + 0.2, 1e-7, 123456.789125, 99999.5, 3])
@pytest.mark.parametrize("stabilised", [False, True])
def test_what_a_start_is_said_to_need_is_what_it_takes(micro, tmp_path: Path, alpha: float, stabilised: bool) -> None:
    targets = {"target_modules": ["attn.to_q", "ff.net.2"]}
    folder = by_peft(untouched(micro), tmp_path, **PLAIN | targets | {"lora_alpha": alpha, "use_rslora": stabilised})
    advice: list[str] = []
    for _ in range(2):
        with pytest.raises(UsageError, match="set lora") as refusal:
            read_start(starting(folder, *advice), SD3.targets)
        advice += re.findall(r"lora\.(?:rank|alpha)=[^ ]+(?=$| )|lora\.targets=\[[^]]*\]", str(refusal.value))
    lora = starting(folder, *advice)
    micro.adapters.load("theirs", folder)
    micro.adapters.add("student", Shape(lora.rank, lora.alpha, lora.targets))
    micro.adapters.load_state("student", read_start(lora, SD3.targets))
    for layer, delta in micro.adapters.deltas("theirs").items():
        torch.testing.assert_close(micro.adapters.deltas("student")[layer], delta, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("alpha pattern", "alpha_pattern"),
        ("rank pattern", "rank_pattern"),
        ("DoRA", "use_dora"),
        ("biases of its own", "lora_bias"),
    ],
)
def test_a_student_does_not_start_from_what_it_cannot_be(micro, tmp_path: Path, kind: str, field: str) -> None:
    folder = by_peft(untouched(micro), tmp_path, **KINDS[kind])
    with pytest.raises(UsageError, match=field):
        read_start(starting(folder, "lora.rank=4", "lora.alpha=6"), SD3.targets)


@pytest.mark.parametrize("alpha", [0, -4, 2e20])
def test_a_strength_that_no_student_has_is_told_without_advice(micro, tmp_path: Path, alpha: float) -> None:
    folder = by_peft(untouched(micro), tmp_path, **PLAIN | {"lora_alpha": alpha})
    with pytest.raises(UsageError, match=r"does not fit a student: lora\.alpha: Input should be"):
        read_start(starting(folder), SD3.targets)


def test_a_start_that_leaves_layers_alone_says_so(micro, tmp_path: Path) -> None:
    folder = by_peft(untouched(micro), tmp_path / "start", **PLAIN | {"lora_alpha": 4})
    more = ["lora.rank=4", "lora.alpha=4", f"lora.start={folder}", "budget.updates=1", "evaluation.steps=1"]
    spec = resolve("opd_analytic", ["ocr"], overrides=[*more, "params.trajectories=2"])
    with pytest.raises(UsageError, match=r"does not change .*: set lora\.targets=\[.*\]") as refusal:
        execute(spec, Session(tmp_path / "results"))
    targets = str(refusal.value).partition("set ")[2]
    spec = resolve("opd_analytic", ["ocr"], overrides=[*more, "params.trajectories=2", targets])
    folder = tmp_path / "results" / execute(spec, Session(tmp_path / "results"))["folder"] / "adapter"
    assert len(read_adapter(folder)[1]) == len(read_adapter(tmp_path / "start")[1])


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        ("transformer_blocks.3.attn.to_out.0", "attn.to_out.0"),
        ("transformer_blocks.23.ff.net.0.proj", "ff.net.0.proj"),
        ("single_transformer_blocks.11.proj_mlp", "proj_mlp"),
        ("down_blocks.1.attentions.0.transformer_blocks.9.attn1.to_out.0", "attn1.to_out.0"),
        ("mid_block.attentions.0.transformer_blocks.2.ff.net.2", "ff.net.2"),
        ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_1"),
        ("proj_out", "proj_out"),
    ],
)
def test_the_end_of_a_layers_name_is_the_same_in_every_block(layer: str, wanted: str) -> None:
    assert ending(layer) == wanted


def test_exact_numbers_read_back() -> None:
    for number, text in ((64.0, "64"), (7.123456, "7.123456"), (0.1 + 0.2, "0.30000000000000004"), (1e-7, "1e-07")):
        assert exact(number) == text
        assert float(text) == number
