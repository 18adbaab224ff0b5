"""Diversity of images: equal to plain loops, with intervals that hold, and exact for what is known."""

import itertools

import numpy as np
import pytest

from bench.analysis.diversity import distances, over_prompts, surprisal, within_prompt
from bench.analysis.stats import Design, estimate, stratified_mean

RNG = np.random.default_rng(0)


def apart(a: np.ndarray, b: np.ndarray, cosine: bool) -> float:
    if cosine:
        return 1 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.sqrt(((a - b) ** 2).mean()))


@pytest.mark.parametrize("cosine", [True, False])
def test_distances_are_those_of_pairs(cosine: bool) -> None:
    a, b = RNG.normal(size=(5, 7)).astype(np.float32), RNG.normal(size=(4, 7)).astype(np.float32)
    found = distances(a, b, cosine)
    for i, j in itertools.product(range(5), range(4)):
        assert found[i, j] == pytest.approx(apart(a[i].astype(float), b[j].astype(float), cosine), abs=1e-9)
    assert np.diag(distances(a, a, cosine)) == pytest.approx(np.zeros(5), abs=1e-7)


@pytest.mark.parametrize("cosine", [True, False])
def test_diversity_within_a_prompt_is_the_mean_over_its_pairs(cosine: bool) -> None:
    images = RNG.normal(size=(3, 4, 6))
    found = within_prompt(images, cosine)
    for prompt, value in zip(images, found, strict=True):
        pairs = [apart(*pair, cosine) for pair in itertools.combinations(prompt, 2)]
        assert value == pytest.approx(np.mean(pairs), abs=1e-5)
    images[1, 2] = np.nan  # an image that was not finite
    assert np.isnan(within_prompt(images, cosine)).tolist() == [False, True, False]
    same = np.repeat(images[:1, :1], 4, 1)
    assert within_prompt(same, cosine) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("cosine", [True, False])
def test_diversity_over_prompts_is_the_weighted_mean_over_pairs(cosine: bool) -> None:
    strata = np.array(["a"] * 6 + ["b"] * 3)
    prompts = np.array([0, 0, 1, 1, 2, 2, 3, 4, 5])
    images = RNG.normal(size=(9, 5))
    weight = np.where(strata == "a", 1 / 12, 1 / 6)
    own = []
    for i in range(9):
        others = [j for j in range(9) if prompts[j] != prompts[i]]
        pairs = [apart(images[i], images[j], cosine) for j in others]
        own.append(np.average(pairs, weights=weight[others]))
    found = over_prompts(images, strata, prompts, cosine)
    assert stratified_mean(found, Design(strata)) == pytest.approx(np.average(own, weights=weight), abs=1e-5)
    images[0] = np.nan
    assert np.isnan(over_prompts(images, strata, prompts, cosine)).tolist() == [True, *[False] * 8]
    assert np.isnan(over_prompts(images, strata, np.zeros(9), cosine)).all()  # a single prompt has no others


def test_the_interval_over_prompts_covers_the_measure() -> None:
    """A mean of each image's own distances would have intervals half as wide, which hold in two of three cases."""
    rng, truth = np.random.default_rng(1), []
    for _ in range(400):
        a, b = rng.normal(size=(2, 400, 3)) * np.exp(rng.normal(size=(2, 400, 1)))
        truth.append(np.sqrt(((a - b) ** 2).mean(1)).mean())
    expected, held, strata = float(np.mean(truth)), 0, np.array(["a"] * 60)
    for _ in range(300):
        images = rng.normal(size=(60, 3)) * np.exp(rng.normal(size=(60, 1)))
        found = estimate(over_prompts(images, strata, np.arange(60), cosine=False), Design(strata))
        held += found.low <= expected <= found.high
    assert 0.88 <= held / 300 <= 0.99


def test_the_mean_surprisal_is_the_entropy() -> None:
    labels = np.array(["x", "x", "y", "z", "x", "y", "", ""])
    strata = np.array(["a", "a", "a", "a", "b", "b", "b", "c"])
    # x: half of stratum a and half of b; y: a quarter and a half; z: a quarter of a. Stratum c has no label.
    p = np.array([0.5, 0.375, 0.125])
    found = surprisal(labels, strata)
    known = labels != ""
    assert np.isnan(found).tolist() == (~known).tolist()
    weight = np.where(strata == "a", 1 / 8, 1 / 4)[known]
    miller = (3 - 1) * (weight**2).sum() / (2 * np.log(2))
    entropy = float(-(p * np.log2(p)).sum()) + miller
    assert stratified_mean(found[known], Design(strata[known])) == pytest.approx(entropy, abs=1e-5)
    assert surprisal(["x"] * 4, np.array(["a"] * 4)).tolist() == [0.0] * 4
    assert np.isnan(surprisal([""] * 2, np.array(["a"] * 2))).all()
    uniform = surprisal([str(i % 8) for i in range(64)], np.array(["a"] * 64))
    assert uniform.mean() == pytest.approx(3 + 7 / (2 * 64 * np.log(2)), abs=1e-5)


def test_the_correction_takes_the_bias_away() -> None:
    """Six labels, as the grounds of micro, from 48 images; and 33 from 192, as its placements, of which most is left."""
    rng = np.random.default_rng(3)
    for labels, count, bias in ((6, 48, 0.01), (33, 192, 0.02)):
        drawn = [surprisal(rng.integers(labels, size=count).astype(str), np.array(["a"] * count)) for _ in range(300)]
        plain = np.log2(labels) - (labels - 1) / (2 * count * np.log(2))
        assert abs(np.mean(drawn) - np.log2(labels)) < bias < abs(plain - np.log2(labels))


def test_the_interval_of_an_entropy_covers_it() -> None:
    rng, p, held = np.random.default_rng(2), np.array([0.6, 0.2, 0.1, 0.1]), 0
    entropy, strata = float(-(p * np.log2(p)).sum()), np.array(["a"] * 200)
    for _ in range(300):
        found = estimate(surprisal(rng.choice(list("wxyz"), 200, p=p), strata), Design(strata))
        held += found.low <= entropy <= found.high
    assert 0.89 <= held / 300 <= 0.99
