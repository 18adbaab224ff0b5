"""The same contract on a StableDiffusion3Pipeline from disk: rollout, LoRA update of both methods, decode, score."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from bench.api.lab import STUDENT, Lab
from bench.api.task import Prompt, Scores, Task
from bench.backbones.adapters import Shape
from bench.backbones.sd3 import descriptor
from bench.config.compute import Compute
from bench.config.resolve import describe
from bench.errors import MissingError, UsageError
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.schedule import make_schedule
from bench.sampler.transitions import KERNELS
from methods.multi_reward import MultiReward, MultiRewardOptions
from methods.opd_analytic import OpdAnalytic, OpdOptions
from methods.rl.forward_process import OLD
from methods.rl.nft import NftOptions
from tests.methods.conftest import shake


class Dark(Task):
    """Reward: dark pictures."""

    name, version, headline = "dark", "1", "reward"

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt("a cat at night"), Prompt("an unlit street")]

    def score(self, images_BCHW, prompts) -> Scores:
        return Scores(1 - images_BCHW.mean((1, 2, 3)).double().numpy(), {})


@pytest.fixture
def lab(sd3_folder) -> Lab:
    backbone = descriptor(str(sd3_folder)).load("cpu")
    backbone.adapters.add(STUDENT, Shape(4, 8.0), trainable=True)
    backbone.adapters.add("teacher", Shape(4, 8.0), seed=1)
    backbone.adapters.add(OLD, Shape(4, 8.0))
    shake(backbone, "teacher")
    shake(backbone, STUDENT, 0.02)
    sampler = Sampler(make_schedule(3), KERNELS["ode"])
    return Lab(backbone, {"dark": Dark("photo")}, {"dark": "teacher"}, {"dark": 4.5}, sampler, 4.5, 0)


@pytest.mark.parametrize(
    "method",
    [
        OpdAnalytic(OpdOptions(trajectories=2, weighting="velocity")),
        MultiReward(MultiRewardOptions(groups=2, group_size=2, nft=NftOptions(timesteps=1))),
    ],
    ids=["opd_analytic", "nft"],
)
def test_a_method_trains_the_adapter(lab: Lab, method) -> None:
    optimizer = torch.optim.AdamW(lab.backbone.adapters.parameters(STUDENT), lr=1e-2)
    losses = []
    for _ in range(8):
        with torch.no_grad():
            experience = method.mix(lab, {"dark": method.collect(lab, "dark")})["dark"]
        losses.append(0.0)
        for piece in method.losses(lab, "dark", experience):
            losses[-1] += float(piece.detach())
            piece.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert np.isfinite(losses).all()
    if isinstance(method, OpdAnalytic):
        assert losses[-1] < 0.7 * losses[0]


def test_rollout_equals_the_pipeline(sd3_folder) -> None:
    """Our Euler rollout with guidance gives the latents that diffusers' own pipeline gives."""
    backbone = descriptor(str(sd3_folder)).load("cpu")
    noise = backbone.noise(1, torch.Generator().manual_seed(0))
    parts = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder, **parts)
    theirs = pipeline(
        "a cat", negative_prompt="", num_inference_steps=4, guidance_scale=4.5, latents=noise, output_type="latent",
        height=8 * pipeline.vae_scale_factor, width=8 * pipeline.vae_scale_factor,
        max_sequence_length=128,
    ).images  # fmt: skip
    conditioning = backbone.encode(["a cat"])
    field = lambda x, sigma: backbone.velocity(x, sigma, conditioning, None, 4.5)
    sampler = Sampler(make_schedule(4), KERNELS["ode"])
    ours = rollout(field, noise, sampler, torch.Generator()).final
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_path_is_a_backbone_and_missing_weights_name_the_cure(sd3_folder, tmp_path) -> None:
    assert describe(str(sd3_folder)).world == "photo"
    assert len(describe(str(sd3_folder)).fingerprint()) == 16
    with pytest.raises(UsageError, match=r"model_index\.json"):
        describe(str(tmp_path))
    with pytest.raises(MissingError, match="name a local folder"):
        descriptor("hub:nobody/nothing")
    with pytest.raises(MissingError, match="nobody/nothing"):  # its family is not known before its index is
        describe("hub:nobody/nothing")
    broken = tmp_path / "broken"
    shutil.copytree(sd3_folder, broken)
    (broken / "transformer" / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"transformer/config\.json is not JSON"):
        descriptor(str(broken)).load("cpu")


@pytest.mark.parametrize("variant", ["fp16", "my-variant"])
@pytest.mark.parametrize("shards", [False, True])
def test_only_the_half_precision_files_were_downloaded(sd3_folder, tmp_path, shards: bool, variant: str) -> None:
    """Loaded as if they were the plain ones, and counted; a mixture too."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    folder = tmp_path / "p"
    pipeline.save_pretrained(folder, variant=variant, **({"max_shard_size": "10KB"} if shards else {}))
    plain = {p.name for p in folder.rglob("*.safetensors") if variant not in p.name}
    assert not plain
    shutil.rmtree(folder / "vae")
    shutil.copytree(sd3_folder / "vae", folder / "vae")
    ours, theirs = (descriptor(str(f)).load("cpu") for f in (folder, sd3_folder))
    cond, expected = (backbone.encode(["a cat"]) for backbone in (ours, theirs))
    torch.testing.assert_close(cond["sequence"], expected["sequence"])
    x = ours.noise(1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.velocity(x, 0.5, cond, None), theirs.velocity(x, 0.5, expected, None))
    sizes = [descriptor(str(f)).size(Compute()).frozen for f in (folder, sd3_folder)]
    assert sizes[0] == sizes[1]


def test_variants_and_pickles_that_cannot_be_told_apart_are_named(sd3_folder, tmp_path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(sd3_folder, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    for variant in ("fp16", "ema"):
        shutil.copy(weights, weights.with_name(f"diffusion_pytorch_model.{variant}.safetensors"))
    descriptor(str(folder)).load("cpu")  # the plain one is there
    weights.unlink()
    with pytest.raises(MissingError, match="only the variants ema, fp16"):
        descriptor(str(folder)).load("cpu")
    for path in weights.parent.glob("*.safetensors"):
        path.unlink()
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(MissingError, match=r"only pickled weights \(\.bin\)"):
        descriptor(str(folder)).load("cpu")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html>log in</html>", "web page"),
    ],
)
def test_what_stands_in_for_a_file_is_called_what_it_is(sd3_folder, tmp_path, part, content, said) -> None:
    folder = tmp_path / "p"
    shutil.copytree(sd3_folder, folder)
    pattern = "*.json" if part == "tokenizer" else "*.safetensors"
    for path in (folder / part).glob(pattern):
        path.write_bytes(content)
    with pytest.raises((MissingError, UsageError), match=said) as refused:
        descriptor(str(folder)).load("cpu").encode(["a cat"])
    assert "weights_only" not in str(refused.value)
    assert "licence" not in str(refused.value)
