"""The two tastes in colour: angles, opposition, gradients, settings and prompts."""

import colorsys

import numpy as np
import pytest
import torch

from bench.api.task import SPLITS
from bench.config.resolve import resolve, teacher_spec
from bench.errors import UsageError
from bench.registry import find, task_names
from tasks.hue import DIRECTION, SLOPE, HueA, HueB


def images(count: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) ** 2


def rewards(task, pictures: torch.Tensor) -> np.ndarray:
    return task.score(pictures, []).rewards


def test_opposed_tastes_add_up_to_one_and_equal_ones_are_equal() -> None:
    first, pictures = HueA("micro"), images()
    np.testing.assert_array_equal(rewards(HueB("micro", {"angle": "0"}), pictures), rewards(first, pictures))
    opposed = rewards(HueB("micro"), pictures)
    np.testing.assert_allclose(opposed + rewards(first, pictures), 1, atol=1e-12)
    assert np.ptp(opposed) > 0.001


def test_at_a_right_angle_one_taste_says_nothing_about_the_other() -> None:
    first, second = HueA("micro"), HueB("micro", {"angle": "90"})
    pictures = images(1).requires_grad_()
    slopes = [torch.autograd.grad(task.chroma(pictures)[0], pictures)[0].flatten() for task in (first, second)]
    assert abs(torch.cosine_similarity(*slopes, dim=0)) < 1e-6


@pytest.mark.parametrize("degrees", [0, 30, 120, 240, 300])
def test_a_pure_hue_pleases_its_own_direction_most(degrees: int) -> None:
    """The plane's angles are those of pure hues at multiples of 30 degrees."""
    pure = torch.tensor(colorsys.hsv_to_rgb(degrees / 360, 1.0, 1.0)).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = {angle: rewards(HueB("micro", {"angle": str(angle)}), pure)[0] for angle in range(0, 360, 15)}
    assert max(found, key=found.__getitem__) == (degrees - DIRECTION) % 360


def test_lightness_does_not_matter() -> None:
    grey = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    np.testing.assert_allclose(rewards(HueA("photo"), grey), 0.5, atol=1e-6)


def test_the_reward_by_hand_and_its_gradient() -> None:
    pictures = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64).view(1, 3, 1, 1).clone().requires_grad_()
    first, second = (2 * 0.9 - 0.5 - 0.1) / 6**0.5, (0.5 - 0.1) / 2**0.5
    along = (first + second) / 2**0.5
    found = HueA("micro").differentiable_reward(pictures, [])
    assert found.item() == pytest.approx(1 / (1 + np.exp(-SLOPE * along)), abs=1e-12)
    scores = HueA("micro").score(pictures.detach(), [])
    assert scores.rewards[0] == found.item() and scores.metrics["chroma"][0] == pytest.approx(along)
    (slope,) = torch.autograd.grad(found, pictures)
    expected = SLOPE * found.item() * (1 - found.item()) * 2 / 12**0.5
    assert slope[0, 0].item() == pytest.approx(expected)


def test_both_have_the_same_prompts_and_no_text_is_in_two_splits() -> None:
    texts = {}
    for split in SPLITS:
        first, second = ([p.text for p in task("micro").prompts(split)] for task in (HueA, HueB))
        assert first == second == [p.text for p in find("task", "ocr")("micro").prompts(split)]
        texts[split] = set(first)
    assert not texts["train"] & (texts["test"] | texts["validation"]) and not texts["test"] & texts["validation"]
    assert "hue_a" not in task_names(["all"]) and find("task", "hue_b") is HueB


def test_photographic_prompts_come_from_files(tmp_path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"a street {i}\n" for i in range(200)))
    (tmp_path / "test.txt").write_text("a harbour\n")
    task = HueB("photo", {"prompts": str(tmp_path), "angle": "90"})
    assert [p.text for p in task.prompts("test")] == ["a harbour"] and len(task.prompts("validation")) == 128


@pytest.mark.parametrize("angle", ["-1", "361", "nan", "left", ""])
def test_other_angles_are_refused(angle: str) -> None:
    with pytest.raises(UsageError, match=r"scorers\.hue_b\.angle takes degrees from 0 to 360"):
        HueB("micro", {"angle": angle})
    with pytest.raises(UsageError, match="does nothing in the world 'micro'"):
        HueA("micro", {"prompts": "folder"})


def test_a_teacher_has_the_angle_of_its_run() -> None:
    given = ["scorers.hue_b.angle=90", "teachers.hue_a=train", "teachers.hue_b=train"]
    spec = resolve("opd_analytic", ["hue_a", "hue_b"], overrides=given)
    names = {teacher_spec(spec, "hue_b").scorers["hue_b"]["angle"], HueB("micro", spec.scorers["hue_b"]).scorer_name}
    assert names == {"90", "hue_b-1+135"}
