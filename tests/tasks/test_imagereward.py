"""ImageReward against scores of the published code, from the same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.api.task import Prompt
from bench.cli.score import score_folder
from bench.errors import MissingError, UsageError
from bench.scoring.folders import write
from tasks.preference.drawbench import DrawBench
from tasks.preference.imagereward import ImageRewardJudge
from tasks.preference.imagereward_weights import convert
from tasks.preference.task import ImageReward
from tests.tasks import imagereward_state

PUBLISHED = {
    "a red cube on a table": (8.5835599899292, -2.892317295074463),
    "Ünïcode, 😀 [ENC] dog": (14.846159934997559, 0.6414631009101868),
    "a very long prompt that is cut off after thirty-five tokens of single letters": (5.7872443199157715, -4.6875152587890625),
    "": (11.833429336547852, 1.2649106979370117),
}
"""Prompt -> scores of the two images of imagereward_state.images().

Of `ImageReward.score` in image-reward 1.5 (transformers 4.45.2, timm 0.6.13, torch 2.13 on a CPU; fairscale, which only
saves memory in training, was replaced by nothing), whose classes were built with the sizes of imagereward_state, a
vocabulary file of its words, and imagereward_state.state() as weights. No tensor was missing or left over.
"""


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("imagereward")
    torch.save(imagereward_state.state(), folder / "ImageReward.pt")
    convert(folder / "ImageReward.pt", folder / "model")
    return {"model": str(folder / "model"), "tokenizer": str(imagereward_state.tokenizer(folder / "tokenizer"))}


def test_scores_are_those_of_the_published_code(sources) -> None:
    task = ImageReward("photo", sources)
    for text, wanted in PUBLISHED.items():
        scores = task.score(imagereward_state.images(), [Prompt(text)] * 2)
        np.testing.assert_allclose(scores.metrics["imagereward"], wanted, rtol=1e-5, atol=1e-5)
        # Half of all scores are negative, so the reward begins at -2; ReFL trains up to 2.
        np.testing.assert_allclose(scores.rewards, np.clip((np.array(wanted) + 2) / 4, 0, 1), atol=1e-5)
    assert task.scorer_name.startswith("imagereward-1+imagereward-")


def test_batches_change_nothing(sources) -> None:
    images, texts = imagereward_state.images().repeat(3, 1, 1, 1), [*PUBLISHED, "a", "b"]
    one, all_ = (ImageRewardJudge(sources | {"batch": size})(images, texts) for size in ("1", "64"))
    np.testing.assert_allclose(one, all_, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(all_[:2], [PUBLISHED[texts[0]][0], PUBLISHED[texts[1]][1]], rtol=1e-4)


def test_the_reward_has_the_gradient_of_the_score(sources) -> None:
    task, prompts = ImageReward("photo", sources), [Prompt("a cat"), Prompt("dog")]
    images = ((0.2 + 0.6 * imagereward_state.images()) * 255).round().div(255).requires_grad_()
    rewards = task.differentiable_reward(images, prompts)
    raw = task.score(images.detach(), prompts).metrics["imagereward"]
    np.testing.assert_allclose(rewards.detach().numpy(), (raw + 2) / 4, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(rewards.sum(), images)
    # A level of a pixel up or down where the gradient is steepest, as images have 256 levels.
    direction = gradient.sign() * (gradient.abs() > gradient.abs().flatten().quantile(0.9)) / 255
    up, down = (task.judge(images.detach() + sign * direction, ["a cat", "dog"]).sum() for sign in (1, -1))
    assert (up - down) / 2 / 4 == pytest.approx(float((gradient * direction).sum()), rel=0.1)


def test_the_head_is_float32_in_half_precision(sources) -> None:
    whole, half = (ImageRewardJudge(sources | {"precision": kind}) for kind in ("float32", "bfloat16"))
    assert half.name == f"{whole.name}-bfloat16"
    assert half.model.dtype == torch.bfloat16 and half.model.head[0].weight.dtype == torch.float32
    a, b = (judge(imagereward_state.images(), ["a cat", "dog"]) for judge in (whole, half))
    np.testing.assert_allclose(a, b, rtol=0.1, atol=0.5)


def test_other_weights_are_refused(sources, clip_folder: Path, tmp_path: Path) -> None:
    images = imagereward_state.images()
    with pytest.raises(MissingError, match="imagereward_weights CHECKPOINT"):
        ImageReward("photo").score(images, [Prompt("a"), Prompt("b")])
    with pytest.raises(UsageError, match="not a converted ImageReward model: its model type is 'clip'"):
        ImageRewardJudge(sources | {"model": str(clip_folder)})(images, ["a", "b"])
    with pytest.raises(MissingError, match=r"is not ImageReward's: .* use google-bert/bert-base-uncased"):
        ImageRewardJudge(sources | {"tokenizer": str(clip_folder)})(images, ["a", "b"])
    with pytest.raises(MissingError, match="no ImageReward checkpoint at"):
        convert(tmp_path / "ImageReward.pt", tmp_path / "out")
    (tmp_path / "text.pt").write_text("not found")
    with pytest.raises(UsageError, match="is not a valid ImageReward checkpoint: it is text"):
        convert(tmp_path / "text.pt", tmp_path / "out")
    state = imagereward_state.state()
    lacking = {key: value for key, value in state.items() if key != "mlp.layers.4.bias"}
    for broken in ({"x": torch.zeros(1)}, lacking, state | {"mlp.layers.7.weight": torch.zeros(3, 16)}):
        torch.save(broken, tmp_path / "broken.pt")
        with pytest.raises(UsageError, match="is not a valid ImageReward checkpoint"):
            convert(tmp_path / "broken.pt", tmp_path / "out")
    torch.save(state | {"mlp.layers.7.weight": torch.full((1, 16), torch.nan)}, tmp_path / "broken.pt")
    with pytest.raises(UsageError, match=r"not finite in the tensor mlp\.layers\.7\.weight"):
        convert(tmp_path / "broken.pt", tmp_path / "out")


def test_folders_of_images_are_scored(sources, tmp_path: Path, capsys) -> None:
    prompts = [Prompt(text, f"{i}") for i, text in enumerate(list(PUBLISHED)[:2])]
    write(tmp_path / "made", prompts, imagereward_state.images(), [(0, 0), (1, 0)])
    settings = [f"scorers.imagereward.{key}={value}" for key, value in sources.items()]
    score_folder("imagereward", tmp_path / "made", settings, "photo", 8)
    assert "imagereward" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "made" / "results-imagereward.jsonl").read_text().splitlines()]
    wanted = [PUBLISHED[prompt.text][i] for i, prompt in enumerate(prompts)]
    assert [row["imagereward"] for row in rows] == pytest.approx(wanted, rel=1e-4)


def test_drawbench_keeps_negative_scores(sources) -> None:
    settings = {"judges": "imagereward", **{f"imagereward_{key}": value for key, value in sources.items()}}
    scores = DrawBench("photo", settings).score(imagereward_state.images(), [Prompt(""), Prompt("")])
    np.testing.assert_allclose(scores.metrics["imagereward"], PUBLISHED[""], rtol=1e-5)
    np.testing.assert_allclose(scores.rewards, [1, (PUBLISHED[""][1] + 2) / 4], rtol=1e-5)
