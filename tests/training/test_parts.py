"""Pictures are decoded and scored in parts of bounded size, and nothing that comes of them depends on the parts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.api import scores as scoring
from bench.api.lab import Lab
from bench.api.scores import parts_of, stacked
from bench.api.task import Prompt, Scores, Task
from bench.sampler.levels import FlowLevels
from bench.sampler.rollout import euler
from bench.scoring.folders import read
from bench.scoring.loading import load_task
from bench.training.evaluate import evaluate


class Watched(Task):
    """Scores brightness, and remembers how many pictures came together."""

    name, version, headline = "watched", "1", "reward"

    def __init__(self) -> None:
        super().__init__("micro")
        self.together: list[int] = []

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(f"a photo of a {shape}") for shape in ("ring", "star", "circle", "cross", "square")]

    def score(self, images_BCHW, prompts) -> Scores:
        assert len(images_BCHW) == len(prompts)
        self.together.append(len(prompts))
        return Scores(images_BCHW.mean((1, 2, 3)).double().numpy(), {})


def test_parts_have_a_bounded_number_of_places() -> None:
    sizes = lambda *shape: [len(range(shape[0])[rows]) for rows in parts_of(torch.empty(shape))]
    assert sizes(40, 16, 64, 64) == [16, 16, 8]  # 512 pixels
    assert sizes(5, 16, 128, 128) == [4, 1]  # 1024 pixels
    assert sizes(2, 16, 512, 512) == [1, 1]
    assert sizes(4096, 16, 4, 4) == [4096]  # micro: as ever
    assert sizes(0, 16, 64, 64) == []


@pytest.mark.parametrize("places", [16, 3 * 16, 64 * 16])
def test_micro_decodes_to_the_same_bits_in_parts(places: int, micro, monkeypatch) -> None:
    latents = micro.noise(50, torch.Generator().manual_seed(0))
    whole = micro.decode(latents)
    monkeypatch.setattr(scoring, "PART", places)
    parts = [micro.decode(latents[rows]) for rows in parts_of(latents)]
    assert max(len(part) for part in parts) == min(50, places // 16)
    assert torch.equal(torch.cat(parts), whole)


def test_an_update_is_scored_in_parts(micro, monkeypatch) -> None:
    task = Watched()
    lab = Lab(micro, {"watched": task}, {}, {}, euler(FlowLevels(3.0), 1), 1.0, seed=0)
    latents = micro.noise(5, torch.Generator().manual_seed(0))
    whole = lab.score("watched", latents, task.prompts("train"))
    monkeypatch.setattr(scoring, "PART", 2 * 16)
    parts = lab.score("watched", latents, task.prompts("train"))
    assert task.together == [5, 2, 2, 1]
    np.testing.assert_array_equal(parts.rewards, whole.rewards)


@pytest.mark.parametrize("name", ["geneval", "pickscore"])
def test_real_tasks_score_the_same_in_parts(name: str, micro, monkeypatch) -> None:
    task = load_task(name, "micro")
    lab = Lab(micro, {name: task}, {}, {}, euler(FlowLevels(3.0), 1), 1.0, seed=0)
    latents = micro.noise(7, torch.Generator().manual_seed(0))
    whole = lab.score(name, latents, task.prompts("test")[:7])
    monkeypatch.setattr(scoring, "PART", 3 * 16)
    parts = lab.score(name, latents, task.prompts("test")[:7])
    np.testing.assert_allclose(parts.rewards, whole.rewards, atol=1e-6)
    assert len(parts.details) == len(whole.details)


def test_an_evaluation_is_scored_and_drawn_in_parts(micro, monkeypatch, tmp_path: Path) -> None:
    task, told = Watched(), []
    whole = evaluate(micro, task, None, euler(FlowLevels(3.0), 1), 1.0, folder=tmp_path / "whole")
    monkeypatch.setattr(scoring, "PART", 2 * 16)
    listener = lambda done, of: told.append((done, of))
    parts = evaluate(micro, task, None, euler(FlowLevels(3.0), 1), 1.0, folder=tmp_path / "parts", batch=4, listener=listener)
    assert task.together == [5, 2, 2, 1]
    assert told == [(2, 5), (4, 5), (5, 5)]
    # Not to the bit: some processors add up a batch of four in another order than one of five.
    np.testing.assert_allclose(parts.rows["reward"], whole.rows["reward"], rtol=0, atol=1e-6)
    drawn = [[sample.path.read_bytes() for sample in read(tmp_path / name)] for name in ("whole", "parts")]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 5


def test_details_stay_with_their_pictures() -> None:
    one = Scores(np.ones(2), {"m": np.ones(2)})
    two = Scores(np.zeros(1), {"m": np.zeros(1)}, [{"why": "dark"}])
    assert stacked([one, two]).details == [{}, {}, {"why": "dark"}]
    assert stacked([one, one]).details == []
    with pytest.raises(scoring.BenchError, match="for some images"):
        stacked([one, Scores(np.ones(1), {})])


def spoiled(monkeypatch, micro, rows: list[int], value: float) -> None:
    """Latents of these rows come out of the sampler with a value in them that is not finite."""
    honest = micro.velocity

    def velocity(x, *rest):
        found = honest(x, *rest).clone()
        found[rows, 0, 0, 0] = value
        return found

    monkeypatch.setattr(micro, "velocity", velocity)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_picture_that_is_not_finite_is_lost_and_not_drawn(micro, monkeypatch, tmp_path: Path, value: float) -> None:
    task = Watched()
    whole = evaluate(micro, task, None, euler(FlowLevels(3.0), 1), 1.0).rows["reward"]
    spoiled(monkeypatch, micro, [1, 3], value)
    found = evaluate(micro, task, None, euler(FlowLevels(3.0), 1), 1.0, folder=tmp_path / "drawn")
    assert found.failed == 2
    np.testing.assert_array_equal(found.rows["reward"], np.where([0, 1, 0, 1, 0], np.nan, whole))
    assert [sample.path.parent.parent.name for sample in read(tmp_path / "drawn")] == ["00000", "00002", "00004"]


def test_a_model_whose_pictures_are_not_finite_is_no_model(micro, monkeypatch) -> None:
    spoiled(monkeypatch, micro, [0, 1, 2, 3, 4], float("nan"))
    task = Watched()
    with pytest.raises(scoring.BenchError, match="the model's output is not finite"):
        evaluate(micro, task, None, euler(FlowLevels(3.0), 1), 1.0)
    assert task.together == []


@pytest.mark.parametrize("name", ["ocr", "geneval"])
def test_no_update_is_scored_on_pictures_that_are_not_finite(name: str, micro) -> None:
    task = load_task(name, "micro")
    lab = Lab(micro, {name: task}, {}, {}, euler(FlowLevels(3.0), 1), 1.0, seed=0, step=4)
    latents = micro.noise(3, torch.Generator().manual_seed(0))
    latents[2, 0, 0, 0] = float("inf")
    with pytest.raises(scoring.BenchError, match=f"update 5: task '{name}': .* not finite"):
        lab.score(name, latents, task.prompts("test")[:3])
