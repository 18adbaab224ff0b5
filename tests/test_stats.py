import numpy as np
import pytest

from bench.stats import estimate, stratified_mean


def test_stratified_mean_weighs_strata_equally() -> None:
    values, strata = np.array([1.0, 1.0, 1.0, 0.0]), np.array(["a", "a", "a", "b"])
    assert stratified_mean(values, strata) == 0.5
    assert np.isnan(stratified_mean(np.array([]), np.array([])))


def test_interval_covers_at_its_rate() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        values = (rng.random(80) < 0.3).astype(float)
        interval = estimate(values, np.zeros(80), seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_interval_is_seeded_and_several_seeds_widen_it() -> None:
    rng = np.random.default_rng(1)
    strata = np.repeat(["a", "b"], 50)
    seeds = np.stack([rng.random(100) + shift for shift in (0.0, 0.5, 1.0)])
    assert estimate(seeds, strata) == estimate(seeds, strata)
    one, three = estimate(seeds[1], strata), estimate(seeds, strata)
    assert three.value == pytest.approx(np.mean([stratified_mean(s, strata) for s in seeds]))
    assert three.high - three.low > one.high - one.low
