import itertools

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from bench.analysis.records import design, prompts_known
from bench.analysis.stats import (
    RESAMPLES,
    Design,
    Estimate,
    codes,
    equivalence,
    estimate,
    estimates,
    holm,
    holm_within,
    interquartile_mean,
    joined,
    paired_difference,
    probability_of_improvement,
    ratio,
    resampled_means,
    stratified_mean,
)
from bench.training.evaluate import Evaluation


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


@pytest.mark.parametrize("runs", [3, 5])
@pytest.mark.parametrize(("of_seeds", "of_prompts"), [(0, 0.3), (0.05, 0.3), (0.2, 0), (0.2, 0.3)])
def test_interval_covers_with_few_seeds(runs: int, of_seeds: float, of_prompts: float) -> None:
    """Whatever dominates: seeds that differ, prompts that differ, or the chance of single pictures."""
    rng = np.random.default_rng(5)
    strata, hits, rejected = np.repeat(["a", "b", "c"], 32), 0, 0
    for _ in range(400):
        seeds, prompts = of_seeds * rng.normal(size=(runs, 1)), of_prompts * rng.normal(size=96)
        values = seeds + prompts + 0.4 * rng.normal(size=(runs, 96))
        found = paired_difference(values, np.zeros(96), strata)
        hits += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert 0.925 <= hits / 400 <= 0.99
    assert rejected / 400 <= 0.075


def test_interval_is_seeded_and_several_seeds_widen_it() -> None:
    rng = np.random.default_rng(1)
    strata = np.repeat(["a", "b"], 50)
    seeds = np.stack([rng.random(100) + shift for shift in (0.0, 0.5, 1.0)])
    assert estimate(seeds, strata) == estimate(seeds, strata)
    one, three = estimate(seeds[1], strata), estimate(seeds, strata)
    assert three.value == pytest.approx(np.mean([stratified_mean(s, strata) for s in seeds]))
    assert three.high - three.low > one.high - one.low


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(3, 200))
    a, b = shared + 0.1 + 0.01 * rng.normal(size=shared.shape), shared
    difference = paired_difference(a, b, np.zeros(200))
    assert difference.low > 0.09
    assert difference.high < 0.11
    assert difference.p <= 0.001
    twins = paired_difference(b, b, np.zeros(200))
    assert (twins.value, twins.p) == (0.0, 1.0)


def test_p_value_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(3)
    ps = [paired_difference(rng.normal(size=(1, 60)), np.zeros(60), np.zeros(60), t).p for t in range(200)]
    assert 0.02 <= np.mean(np.array(ps) < 0.05) <= 0.11
    assert 0.4 <= np.mean(np.array(ps) < 0.5) <= 0.6


def test_joined_rows_weigh_tasks_equally_whatever_their_strata() -> None:
    tags = np.array(["x", "y", "y"])
    per_task = {"a": (np.array([[1.0, 0.0, 0.5]]), tags), "b": (np.array([[0.25, 0.75]]), np.array(["z", "z"]))}
    values, strata = joined(per_task)
    wanted = np.mean([stratified_mean(v[0], s) for v, s in per_task.values()])
    assert stratified_mean(values[0], strata) == pytest.approx(wanted)


def test_ratio_by_hand_and_its_coverage() -> None:
    assert ratio(np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.zeros(2)) == Estimate(0.5, 0.5, 0.5)
    assert np.isnan(ratio(np.ones(3), np.zeros(3), np.zeros(3)).value)
    rng = np.random.default_rng(4)
    hits = 0
    for trial in range(300):
        gain = rng.normal(0.3, 0.5, 192)
        share = ratio(0.9 * gain + rng.normal(0, 0.5, 192), gain, np.zeros(192), seed=trial)
        hits += share.low <= 0.9 <= share.high
    assert 0.90 <= hits / 300 <= 0.99


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([[0.0, 1], [2, 3], [4, 5], [6, 100]])).value == pytest.approx(
        (2 + 3 + 4 + 5) / 4
    )
    runs = np.array([[0.1, 0.5], [0.4, 0.9], [0.8, 0.2]])
    middles = [np.sort(runs[list(way)].ravel())[1:5].mean() for way in itertools.product(range(3), repeat=3)]
    found = interquartile_mean(runs)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(middles, [0.025, 0.975])), abs=0.05)
    assert np.isnan(interquartile_mean(np.array([])).value)
    assert np.isnan(interquartile_mean(np.array([[0.5, np.nan]])).value)
    alone = interquartile_mean(np.array([[0.1, 0.2, 0.3, 0.4]]))
    assert alone.value == pytest.approx(0.25) and np.isnan(alone.low)


def test_probability_of_improvement_by_hand() -> None:
    assert probability_of_improvement(np.array([1.0, 2.0]), np.array([0.0, 1.0])).value == pytest.approx(3.5 / 4)
    assert probability_of_improvement(np.array([1.0]), np.array([1.0])).value == 0.5
    assert np.isnan(probability_of_improvement(np.array([]), np.array([1.0])).value)
    apart = probability_of_improvement(np.arange(5) + 10.0, np.arange(5.0))
    assert apart.value == apart.high == 1
    assert 0.6 < apart.low < 0.7  # five runs above five others do not make it certain


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, float("nan"), 0.9])[0] == 1.0


def test_p_hangs_on_no_draw_and_has_no_floor() -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(0.05, 0.4, 200) + rng.normal(0, 0.01, (3, 1)) + rng.normal(0, 0.3, (3, 200))
    found = [paired_difference(gaps, np.zeros(200), np.zeros(200), seed=seed).p for seed in range(8)]
    assert max(found) == min(found)
    draws = resampled_means(gaps, np.zeros(200))
    assert found[0] == pytest.approx(2 * min((draws < 0).mean(), (draws > 0).mean()), abs=0.03)
    sure = paired_difference(gaps / 100 + np.array([[1.0], [1.01], [0.99]]), np.zeros(200), np.zeros(200))
    assert 0 < sure.p < 1e-4  # Student's t with two degrees of freedom


def test_intervals_of_differences_hang_on_no_draw_and_say_what_p_says() -> None:
    rng = np.random.default_rng(0)
    for seeds, of_seeds, of_rows in ((2, 0.01, 0.3), (3, 0.5, 0.01), (3, 1e-4, 1.0), (10, 0.03, 0.3)):
        gaps = rng.normal(0.05, of_rows, 200) + rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, 0.1, (seeds, 200))
        first, second = (paired_difference(gaps, np.zeros(200), np.zeros(200), seed=seed) for seed in range(2))
        assert first == second
        for end in (first.low, first.high):
            assert paired_difference(gaps, np.full(200, end), np.zeros(200)).p == pytest.approx(0.05, abs=2 / RESAMPLES)
        drawn = np.quantile(resampled_means(gaps, np.zeros(200)), [0.025, 0.975])
        assert [first.low, first.high] == pytest.approx(drawn, abs=0.08 * (first.high - first.low))


def test_seeds_that_differ_by_rounding_do_not_differ() -> None:
    rows = np.random.default_rng(0).normal(0.1, 0.3, 60)
    same = paired_difference(np.stack([rows] * 3), np.zeros(60), np.zeros(60))
    rounded = paired_difference(np.stack([rows, rows * (1 + 1e-15), rows + 1e-17]), np.zeros(60), np.zeros(60))
    assert (rounded.low, rounded.high, rounded.p) == pytest.approx((same.low, same.high, same.p))


def test_p_and_interval_are_the_t_tests_where_rows_say_nothing() -> None:
    seeds = np.array([0.3, 0.1, 0.25, 0.4])
    found = paired_difference(np.repeat(seeds[:, None], 5, 1), np.zeros(5), np.zeros(5))
    wanted = ttest_1samp(seeds, 0)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-6)
    assert [found.low, found.high] == pytest.approx(list(wanted.confidence_interval()), rel=1e-6)


def clustered(prompts: list[tuple[int, int]]) -> Design:
    """Strata of (prompts, pictures), the pictures cycling through the prompts, as GenEval's on micro do."""
    strata = np.concatenate([np.full(pictures, tag) for tag, (_, pictures) in enumerate(prompts)])
    return Design(
        strata, np.concatenate([np.arange(pictures) % n + 100 * t for t, (n, pictures) in enumerate(prompts)])
    )


MICRO = [(2, 48), (10, 48), (6, 48), (16, 48), (39, 48), (48, 48)]
"""Prompts and pictures of GenEval's tags on micro."""
TRIALS = 1500


@pytest.mark.parametrize(
    ("prompts", "seeds", "least"),
    [([(100, 400)], 1, 0.93), ([(16, 48)] * 6, 1, 0.93), ([(16, 48)] * 6, 5, 0.93), (MICRO, 3, 0.91)],
)
def test_intervals_of_pictures_that_share_prompts_cover(
    prompts: list[tuple[int, int]], seeds: int, least: float
) -> None:
    """At their rate, and so does p; with pictures for clusters they cover visibly less.

    Two prompts that decide over a sixth of the score tell too little of their own spread for quite the full rate.
    """
    rng, design = np.random.default_rng(0), clustered(prompts)
    covered, rejected = np.zeros(2), np.zeros(2)
    for _ in range(TRIALS):
        of_prompts = rng.normal(size=design.clusters.max() + 1)[design.clusters]
        values = 0.3**0.5 * of_prompts + 0.7**0.5 * rng.normal(size=(seeds, len(design.strata)))
        correct = (values > 0).astype(float)
        for way, of in enumerate((design, design.strata)):
            found = paired_difference(correct, np.full(correct.shape[1], 0.5), of)
            covered[way] += found.low <= 0 <= found.high
            rejected[way] += found.p < 0.05
    assert least <= covered[0] / TRIALS <= 0.975
    assert rejected[0] / TRIALS <= 1 - least + 0.005
    assert covered[1] < covered[0] - 0.02 * TRIALS
    assert rejected[1] > rejected[0]


def test_clustered_standard_error_by_hand() -> None:
    """Four prompts of two equal pictures are four observations, not eight; alone they are what the bootstrap draws."""
    means = np.array([0.0, 1.0, 1.0, 0.5])
    values, prompts = np.repeat(means, 2), Design(np.zeros(8), np.repeat(np.arange(4), 2))
    assert estimate(values, prompts) == estimate(means, np.zeros(4))
    draws = resampled_means(values[None], prompts)
    wide = 3.182 / 1.960  # Student's t with three degrees of freedom over the normal
    assert draws.std() == pytest.approx(wide * means.std(ddof=1) / 2, rel=0.03)
    assert estimate(values, np.zeros(8)).high - estimate(values, np.zeros(8)).low < np.ptp(
        np.quantile(draws, [0.025, 0.975])
    )


def test_order_of_rows_and_labels_of_clusters_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    values, design = rng.random((3, 12)), clustered([(2, 6), (3, 6)])
    order = rng.permutation(12)
    other = Design(design.strata[order], np.array([f"prompt {100 - c}" for c in design.clusters[order]]))
    one, two = estimate(values, design), estimate(values[:, order], other)
    assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high), abs=0.02)
    assert design.clustered and not Design(np.zeros(3)).clustered
    assert codes(["b", "a", "b"]).tolist() == [0, 1, 0]
    kept = design.kept(np.array([0, 2, 6]))
    assert (kept.strata.tolist(), kept.clusters.tolist()) == ([0, 0, 1], [0, 0, 100])


def test_one_cluster_has_no_interval_and_a_lone_one_beside_others_adds_no_chance() -> None:
    alone = estimate(np.array([0.2, 0.4]), Design(np.zeros(2), np.zeros(2)))
    assert alone.value == pytest.approx(0.3) and np.isnan(alone.low)
    both = estimate(np.array([0.5, 0.0, 1.0, 0.0, 1.0]), np.array([0, 1, 1, 1, 1]))
    half = estimate(np.array([0.0, 1.0, 0.0, 1.0]), np.zeros(4))
    assert both.high - both.low == pytest.approx((half.high - half.low) / 2, rel=0.05)


def test_joined_tasks_keep_their_clusters_and_share_a_model_of_one_seed() -> None:
    rng = np.random.default_rng(2)
    a, b = clustered([(4, 8), (2, 8)]), clustered([(5, 5)])
    values, design = joined({"a": (rng.random((3, 16)), a), "b": (rng.random(5), b)})
    assert values.shape == (3, 21)
    assert len(np.unique(design.strata)) == 3
    assert len({*zip(design.strata.tolist(), design.clusters.tolist())}) == 4 + 2 + 5


def test_sets_together_are_what_they_are_alone() -> None:
    rng, design = np.random.default_rng(4), clustered(MICRO)
    sets = [rng.random((2, 288)) for _ in range(3)]
    for found, values in zip(estimates(sets, design), sets):
        alone = estimate(values, design)
        assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_equivalence_is_two_one_sided_t_tests() -> None:
    seeds = np.array([0.01, -0.02, 0.015, 0.0, 0.005])
    gaps = np.repeat(seeds[:, None], 4, 1)
    wanted = max(
        ttest_1samp(seeds, -0.03, alternative="greater").pvalue, ttest_1samp(seeds, 0.03, alternative="less").pvalue
    )
    assert equivalence(gaps, np.zeros(4), np.zeros(4), 0.03) == pytest.approx(wanted, rel=1e-6)
    assert equivalence(gaps, np.zeros(4), np.zeros(4), 0.001) > 0.5  # too narrow a margin for such seeds
    assert equivalence(gaps + 0.05, np.zeros(4), np.zeros(4), 0.03) > 0.9
    assert np.isnan(equivalence(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0), 0.1))


def test_not_distinguished_is_not_equivalent() -> None:
    rng = np.random.default_rng(5)
    gaps = 0.2 * rng.normal(size=(3, 1)) + 0.2 * rng.normal(size=(3, 40))
    assert paired_difference(gaps, np.zeros(40), np.zeros(40)).p > 0.05
    assert equivalence(gaps, np.zeros(40), np.zeros(40), 0.03) > 0.05


def test_families_do_not_pay_for_each_other() -> None:
    found = holm_within([0.02, 0.01, 0.03, float("nan"), 0.04], ["a", "b", "a", "a", "b"])
    assert found[:3] == pytest.approx([0.04, 0.02, 0.04]) and np.isnan(found[3]) and found[4] == pytest.approx(0.04)


def test_an_evaluation_says_which_pictures_show_one_prompt() -> None:
    prompts = np.array([0, 0, 1, 1, 2])
    values = {"reward": np.array([1.0, 1.0, 0.0, 0.0, np.nan])}
    made = Evaluation("t", "reward", np.array(["a"] * 5), values, prompts)
    record = made.record()
    assert record["prompts"] == prompts.tolist()
    again = Evaluation.from_record(record)
    assert again.record()["prompts"] == record["prompts"]
    assert made.estimate() == again.estimate() == estimate(np.array([1.0, 0.0]), np.zeros(2))
    assert "prompts" not in Evaluation("t", "reward", np.array(["a"] * 5), values).record()
    assert design(record | {"task": "nobody's"}).clusters.tolist() == record["prompts"]


def test_what_a_record_does_not_say_of_its_prompts_is_looked_up_or_said_to_be_unknown() -> None:
    tags = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    old = {"task": "geneval", "strata": np.repeat(tags, 24)}
    assert prompts_known(old) == "task"
    assert len(set(design(old).clusters.tolist())) == 60  # validation
    other = old | {"strata": np.repeat(tags, 23)}
    assert prompts_known(other) == prompts_known(old | {"task": "nobody's"}) == ""
    assert design(other).clusters is None
    assert prompts_known(other | {"prompts": [0] * 138}) == "record"
