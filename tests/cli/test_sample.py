"""`bench sample`: images from a user's own prompts."""

import json
from pathlib import Path

import pytest
import torch

from bench.api.task import Prompt
from bench.backbones.flow import FlowBackbone
from bench.cli.sample import Sampling, draw, noise_of, own_guidance, prompts_in
from bench.config.resolve import describe
from bench.errors import UsageError
from bench.sampler.rollout import euler
from bench.scoring.folders import load, read, world_of
from bench.training.evaluate import pictures
from tests.commands import bench

PROMPTS = ["a red circle", "a blue square"]
ASKED = Sampling("base", "micro", PROMPTS, each=2, guidance=None, steps=3, seed=4, overrides=[])


def test_an_image_follows_from_prompt_seed_and_number(tmp_path: Path, micro: FlowBackbone, capsys) -> None:
    """As drawn one by one from their noise; the layout is what `bench score` reads; other prompts change nothing."""
    draw(ASKED, tmp_path / "a")
    assert capsys.readouterr().out == f"{tmp_path / 'a'}\n"
    samples = read(tmp_path / "a")
    assert [(s.prompt.text, s.path.name) for s in samples] == [(p, f"000{k}.png") for p in PROMPTS for k in range(2)]
    assert world_of(tmp_path / "a") == "micro"
    descriptor = describe("micro")
    sampler = euler(descriptor.levels_at(micro.compute), 3)
    for sample, (text, k) in zip(samples, [(p, k) for p in PROMPTS for k in range(2)]):
        noise = noise_of(micro, 4, text, k)[None]
        alone = pictures(micro, [Prompt(text)], noise, None, sampler, own_guidance(descriptor))
        assert (load(sample.path) - alone[0]).abs().max() <= 0.5 / 255 + 1e-4
    assert not torch.equal(noise_of(micro, 4, text, 0), noise_of(micro, 4, text, 1))
    assert not torch.equal(noise_of(micro, 4, text, 0), noise_of(micro, 5, text, 0))
    fewer = Sampling("base", "micro", PROMPTS[1:] * 2, each=1, guidance=None, steps=3, seed=4, overrides=["compute.batch=1"])
    draw(fewer, tmp_path / "b")
    (only,) = read(tmp_path / "b")
    assert (load(only.path) - load(samples[2].path)).abs().max() <= 1 / 255


def test_the_guidance_is_the_model_s_own_unless_one_is_given() -> None:
    assert own_guidance(describe("sd3")) == 4.5
    assert own_guidance(describe("micro")) == 1.0


def test_a_file_of_prompts(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff a red circle \r\n\r\na blue square", encoding="utf-8")
    assert prompts_in(str(file)) == PROMPTS
    monkeypatch.setattr("sys.stdin", file.open(encoding="utf-8-sig"))
    assert prompts_in("-") == PROMPTS
    with pytest.raises(UsageError, match="cannot read prompts from"):
        prompts_in(str(tmp_path / "none.txt"))
    file.write_bytes(b"a\xff")
    with pytest.raises(UsageError, match="cannot read prompts from"):
        prompts_in(str(file))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no prompt is given"),
        (["a red circle", "--guidance", "1,2"], "give one scale"),
        (["a red circle", "--guidance", "x"], "not a plain decimal number"),
        (["a purple unicorn"], "not in the micro world's vocabulary"),
        (["a red circle", "--adapter", "nowhere"], "no adapter at nowhere"),
        (["a red circle", "--set", "compute.negative_prompt=a blue square", "--guidance", "1"], "no effect at guidance scale 1"),
        (["a red circle", "--set", "optimizer.lr=1"], "optimizer.lr"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_anything_is_written(words: list[str], said: str, tmp_path: Path) -> None:
    done = bench(["sample", "--output", "new", *words], tmp_path)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "new").exists()


def test_images_are_never_mixed_with_others(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").touch()
    done = bench(["sample", "a red circle", "--output", "new"], tmp_path)
    assert done.returncode == 2 and "new is not empty" in done.stderr


def test_what_it_writes_can_be_scored(tmp_path: Path) -> None:
    drawn = bench(["sample", "a red circle", "--output", "new", "--steps", "2"], tmp_path)
    assert drawn.returncode == 0 and drawn.stdout == "new\n", drawn.stderr
    origin = json.loads((tmp_path / "new" / "origin.json").read_text())
    assert origin == {"task": "sample", "world": "micro"}
    scored = bench(["score", "hue_a", "new", "--world", "micro"], tmp_path)
    assert scored.returncode == 0, scored.stderr


def test_what_is_not_finite_is_counted_and_not_written(tmp_path: Path, monkeypatch) -> None:
    from bench.errors import BenchError

    def broken(backbone, prompts, noise, *_) -> torch.Tensor:
        return torch.where(torch.arange(len(noise))[:, None, None, None] == 1, torch.nan, noise)

    monkeypatch.setattr("bench.cli.sample.sampled", broken)
    with pytest.raises(BenchError, match="1 of 4 images are not finite"):
        draw(ASKED, tmp_path / "a")
    assert len(read(tmp_path / "a")) == 3
