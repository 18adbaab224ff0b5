"""HPSv3 against scores of the published code, from the same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.api.task import Prompt
from bench.errors import MissingError, UsageError
from tasks.preference import hpsv3
from tasks.preference.drawbench import DrawBench
from tasks.preference.hpsv3 import HpsV3Judge, patched
from tasks.preference.task import HpsV3
from tasks.resizing import through_pil
from tests.tasks import hpsv3_state
from tests.tasks.imagereward_state import images

TEXTS = ["a long cat", "dog"]
SCRIPT = '''import torch

INSTRUCTION = """
Rate how well this image shows the prompt, with {{braces}}.
Prompt - {text_prompt}
"""
INSTRUCTION_debug = """another"""
prompt_with_special_token = """
Your rating: <|Reward|>
"""
'''
"""A made-up instruction where the package has its own; the package's scores were made with it too."""
PUBLISHED = (0.7546201944351196, 0.8293481469154358)
"""Scores (the means) of the two images of imagereward_state.images() for TEXTS, with the instruction SCRIPT.

Of `HPSv3RewardInferencer.reward` in hpsv3 1.0.0 (transformers 4.45.2, torch 2.13 on a CPU), whose base was a Qwen2-VL of
hpsv3_state.config() and a tokenizer of its words, and whose checkpoint was hpsv3_state.state(), which it loads strictly.
Only what it imports for training was replaced by nothing. The model was cast to bfloat16, as its configuration says, and
then back to float32 and loaded again, so that the scores have digits to compare; rotary frequencies stay rounded.
"""


@pytest.fixture(autouse=True)
def made_up(monkeypatch) -> None:
    monkeypatch.setattr(hpsv3, "HASH", "799e4f21fa")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("hpsv3")
    save_file(hpsv3_state.state(), folder / "HPSv3.safetensors")
    base = folder / "base"
    base.mkdir()
    (folder / "data_collator_qwen.py").write_text(SCRIPT)
    return {
        "model": str(folder / "HPSv3.safetensors"), "base": str(hpsv3_state.base(base)), "precision": "float32",
        "instruction": str(folder / "data_collator_qwen.py"),
    }  # fmt: skip


def test_scores_are_those_of_the_published_code(sources) -> None:
    task = HpsV3("photo", sources)
    scores = task.score(images(), [Prompt(text) for text in TEXTS])
    np.testing.assert_allclose(scores.metrics["hpsv3"], PUBLISHED, atol=1e-5)
    np.testing.assert_allclose(scores.rewards, np.array(PUBLISHED) / 15, atol=1e-6)
    assert task.scorer_name.startswith("hpsv3-1+hpsv3-")
    # A folder with the released file will do, and padding to the longest prompt changes nothing.
    alone = HpsV3Judge(sources | {"model": str(Path(sources["model"]).parent), "batch": "1"})
    np.testing.assert_allclose(alone(images(), TEXTS), PUBLISHED, atol=1e-5)
    assert task.scorer_name.endswith(alone.name)


def test_the_instruction_is_the_packages_own(sources, tmp_path: Path, monkeypatch) -> None:
    asked = HpsV3Judge(sources).conversation("a {cat}", 2)
    assert asked == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|image_pad|>"
        "<|vision_end|>\nRate how well this image shows the prompt, with {braces}.\nPrompt - a {cat}\n\nYour rating: <|Reward|>\n"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(MissingError, match=r"set the source instruction to the file .*pip download hpsv3==1.0.0"):
        HpsV3Judge({key: value for key, value in sources.items() if key != "instruction"})
    with pytest.raises(UsageError, match="cannot read the official instructions"):
        HpsV3Judge(sources | {"instruction": str(tmp_path / "none.py")})(images(), TEXTS)
    (tmp_path / "other.py").write_text(SCRIPT.replace("INSTRUCTION =", "ASKED ="))
    with pytest.raises(UsageError, match="has no text INSTRUCTION"):
        HpsV3Judge(sources | {"instruction": str(tmp_path / "other.py")})(images(), TEXTS)
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"another instruction .* than hpsv3 1.0.0"):
        HpsV3Judge(sources)(images(), TEXTS)


@pytest.mark.parametrize("size", [(45, 70), (512, 512), (333, 500), (1024, 700), (30, 400)])
def test_patches_are_those_of_qwens_processor(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    levels = [(image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for image in pixels]
    limits = {"shortest_edge": 256 * 28 * 28, "longest_edge": 256 * 28 * 28}
    wanted = Qwen2VLImageProcessorPil(size=limits)(images=levels, return_tensors="pt")
    patches, grids = patched(pixels, 14, 2, through_pil)
    torch.testing.assert_close(patches, wanted["pixel_values"], rtol=1e-5, atol=1e-5)
    assert grids.tolist() == wanted["image_grid_thw"].tolist()


def test_the_reward_has_the_gradient_of_the_score(sources) -> None:
    task, prompts = HpsV3("photo", sources), [Prompt(text) for text in TEXTS]
    pictures = ((0.2 + 0.6 * images()) * 255).round().div(255).requires_grad_()
    rewards = task.differentiable_reward(pictures, prompts)
    raw = task.score(pictures.detach(), prompts).metrics["hpsv3"]
    np.testing.assert_allclose(rewards.detach().numpy(), raw / 15, atol=1e-6)
    (gradient,) = torch.autograd.grad(rewards.sum(), pictures)
    # A level of a pixel up or down where the gradient is steepest, as images have 256 levels.
    direction = gradient.sign() * (gradient.abs() > gradient.abs().flatten().quantile(0.999)) / 255
    up, down = (task.judge(pictures.detach() + sign * direction, TEXTS).sum() for sign in (1, -1))
    assert (up - down) / 2 / 15 == pytest.approx(float((gradient * direction).sum()), rel=0.1)


def test_it_computes_in_bfloat16_unless_told_otherwise(sources) -> None:
    half = HpsV3Judge({key: value for key, value in sources.items() if key != "precision"})
    assert half.name == f"{HpsV3Judge(sources).name}-bfloat16"
    scores = half(images(), TEXTS)
    assert half.model.body.dtype == torch.bfloat16 and half.model.head[0].weight.dtype == torch.float32
    np.testing.assert_allclose(scores, PUBLISHED, atol=0.05)
    assert (scores != HpsV3Judge(sources)(images(), TEXTS)).any()


def test_other_weights_are_refused(sources, clip_folder: Path, tmp_path: Path) -> None:
    def refused(kind, match: str, **changed: str) -> None:
        with pytest.raises(kind, match=match):
            HpsV3Judge(sources | changed)(images(), TEXTS)

    refused(MissingError, r"MizzenAI/HPSv3 .* name a local folder", model="MizzenAI/HPSv3")
    refused(MissingError, "no HPSv3 checkpoint at", model=str(tmp_path / "HPSv3.safetensors"))
    refused(MissingError, "no HPSv3 checkpoint at", model=str(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(hpsv3_state.config() | {"intermediate_size": 48}))
    refused(UsageError, r"with the configuration of .*other, holds a tensor whose shape differs", base=str(other))
    refused(UsageError, "did you mean 'bfloat16'", precision="bfloat61")
    refused(UsageError, "device", device="nowhere")
    refused(UsageError, "is not a Qwen2-VL: its model type is 'clip'", base=str(clip_folder))
    (tmp_path / "HPSv3.safetensors").write_text("<!doctype html>")
    refused(UsageError, "it is a web page", model=str(tmp_path))
    state = hpsv3_state.state()
    for name, match in (
        ("rm_head.3.bias", "it lacks 'rm_head.3.bias'"),
        ("model.embed_tokens.weight", "it lacks 'model.embed_tokens.weight'"),
        ("model.norm.weight", r"lacks the tensor norm\.weight|lacks the tensor language_model\.norm\.weight"),
    ):
        save_file({key: value for key, value in state.items() if key != name}, tmp_path / "HPSv3.safetensors")
        refused(UsageError, match, model=str(tmp_path))
    save_file(state | {"surplus": torch.zeros(1)}, tmp_path / "HPSv3.safetensors")
    refused(UsageError, "holds a tensor that its config.json does not describe: surplus", model=str(tmp_path))
    broken = {"model.norm.weight": torch.full((hpsv3_state.WIDTH,), torch.nan)}
    save_file(state | broken, tmp_path / "HPSv3.safetensors")
    refused(UsageError, "not finite in the tensor", model=str(tmp_path))
    words = {"model.embed_tokens.weight": state["model.embed_tokens.weight"][:-1].clone()}
    save_file(state | words, tmp_path / "HPSv3.safetensors")
    refused(MissingError, r"is not HPSv3's: .* use Qwen/Qwen2-VL-7B-Instruct", model=str(tmp_path))
    save_file({"x": torch.zeros(1)}, tmp_path / "HPSv3.safetensors")
    refused(UsageError, "is not a valid HPSv3 checkpoint: it lacks", model=str(tmp_path))


def test_a_prompt_with_one_of_the_models_markers_is_refused(sources) -> None:
    for marker in ("<|Reward|>", "<|image_pad|>"):
        with pytest.raises(UsageError, match="remove it"):
            HpsV3("photo", sources).check(Prompt(f"a {marker} cat"))
        with pytest.raises(UsageError, match="remove it"):
            HpsV3Judge(sources)(images(), [f"a {marker} cat", "dog"])
    HpsV3("photo", sources).check(Prompt("a {prompt} <cat>"))


def test_drawbench_has_it_as_a_judge(sources) -> None:
    settings = {"judges": "hpsv3", "precision": "float32", **{f"hpsv3_{key}": sources[key] for key in ("model", "base", "instruction")}}
    scores = DrawBench("photo", settings).score(images(), [Prompt(text) for text in TEXTS])
    np.testing.assert_allclose(scores.metrics["hpsv3"], PUBLISHED, atol=1e-5)
