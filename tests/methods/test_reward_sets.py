"""Several rewards of an image become one advantage: each rule against numbers worked out by hand or in plain loops."""

from typing import get_args

import numpy as np
import pytest

from bench.config.resolve import resolve
from bench.errors import UsageError
from methods.rl.advantages import FLOOR, advantages
from methods.rl.reward_sets import SetRule, non_dominated, set_advantages

WEIGHTS = {"a": 2.0, "b": 0.5}


def random_set(prompts: int = 5, group: int = 6) -> dict[str, np.ndarray]:
    """Two rewards of unlike spread, on prompts of unlike difficulty."""
    rng = np.random.default_rng(0)
    a = rng.normal(0, 0.3, (prompts, 1)) + rng.normal(0, 0.2, (prompts, group))
    return {"a": a, "b": rng.normal(0.2, 0.01, (prompts, group))}


def found(
    separate: dict[str, np.ndarray], weights: dict[str, float], rule: SetRule, global_std: bool = True
) -> np.ndarray:
    """As RL computes it for a single task."""
    total = np.sum([weights[name] * rewards for name, rewards in separate.items()], 0)
    summed = advantages({"task": total}, "per_reward", global_std)["task"]
    return set_advantages(summed, separate, weights, rule, global_std)


@pytest.mark.parametrize("global_std", [True, False])
def test_the_sum_is_the_released_rule(global_std: bool) -> None:
    """DiffusionNFT's `avg`: weight times score, added up, then centred by prompt over the batch's or prompt's deviation."""
    separate = random_set()
    for p in range(5):
        average = [2.0 * separate["a"][p, i] + 0.5 * separate["b"][p, i] for i in range(6)]
        whole = 2.0 * separate["a"] + 0.5 * separate["b"]
        std = whole.std() if global_std else np.std(average)
        expected = [(value - sum(average) / 6) / (std + 1e-4) for value in average]
        np.testing.assert_allclose(found(separate, WEIGHTS, "sum", global_std)[p], expected, rtol=1e-12)


@pytest.mark.parametrize("global_std", [True, False])
def test_per_reward_gives_each_reward_its_own_deviation(global_std: bool) -> None:
    separate = random_set()
    expected = np.zeros((5, 6))
    for name, rewards in separate.items():
        for p in range(5):
            std = np.std(rewards if global_std else rewards[p])
            expected[p] += WEIGHTS[name] * (rewards[p] - rewards[p].mean()) / (std + 1e-4)
    np.testing.assert_allclose(found(separate, WEIGHTS, "per_reward", global_std), expected, rtol=1e-12)


def test_gdpo_by_hand() -> None:
    """Its paper's example: of two prompts with two pictures, the first's pictures differ in one reward, the second's in
    both. The sum in its group's deviation sees no difference between the prompts, GDPO twice the advantage."""
    separate = {"a": np.array([[0.0, 1.0], [0.0, 1.0]]), "b": np.array([[0.0, 0.0], [0.0, 1.0]])}
    equal = {"a": 1.0, "b": 1.0}
    np.testing.assert_allclose(found(separate, equal, "sum", False), [[-1, 1], [-1, 1]], rtol=1e-3)
    # Group deviations are 1/2, so the sums are -+1 and -+2, whose deviation is sqrt(10/4).
    one = 0.5 / (0.5 + FLOOR)
    std = np.sqrt(2.5) * one
    expected = np.array([[-one, one], [-2 * one, 2 * one]]) / (std + FLOOR)
    np.testing.assert_allclose(found(separate, equal, "gdpo"), expected, rtol=1e-12)


def test_gdpo_is_whitened_over_the_batch_and_takes_the_weights() -> None:
    separate = random_set()
    total = np.zeros((5, 6))
    for name, rewards in separate.items():
        for p in range(5):
            total[p] += WEIGHTS[name] * (rewards[p] - rewards[p].mean()) / (rewards[p].std() + 1e-4)
    values = found(separate, WEIGHTS, "gdpo")
    np.testing.assert_allclose(values, (total - total.mean()) / (total.std() + 1e-4), rtol=1e-12)
    assert values.std() == pytest.approx(1, rel=1e-3)
    # The released code's unbiased deviations (torch.std), with as small a floor.
    z = [(r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-4) for r in separate.values()]
    released = 2.0 * z[0] + 0.5 * z[1]
    released = (released - released.mean()) / (released.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(values * np.sqrt(1 - 1 / 30), released, rtol=2e-2, atol=1e-3)


def test_the_pareto_filter_by_hand() -> None:
    """(1, 0), (0, 1) and (.6, .6) are not dominated; (.5, .5) is, and (1, 0) again is not: equals do not dominate."""
    separate = {
        "a": np.array([[1, 0, 0.6, 0.5, 1.0], [0, 0, 0, 0, 1.0]]),
        "b": np.array([[0, 1, 0.6, 0.5, 0.0], [1, 1, 1, 1, 1.0]]),
    }
    kept = non_dominated(np.stack([*separate.values()]))
    np.testing.assert_array_equal(kept, [[1, 1, 1, 0, 1], [0, 0, 0, 0, 1]])
    values, summed = (found(separate, {"a": 1.0, "b": 1.0}, rule) for rule in ("pareto", "sum"))
    np.testing.assert_array_equal(values, summed * kept)
    assert summed[0, 3] != 0


def test_a_single_direction_leaves_one_front_and_weights_do_not_move_it() -> None:
    separate = random_set()
    kept = found(separate, WEIGHTS, "pareto") != 0
    for p in range(5):
        for i in range(6):
            better = [
                all(r[p, j] >= r[p, i] for r in separate.values()) and any(r[p, j] > r[p, i] for r in separate.values())
                for j in range(6)
            ]
            assert kept[p, i] == (not any(better))
    np.testing.assert_array_equal(kept, found(separate, {"a": 0.1, "b": 7.0}, "pareto") != 0)


@pytest.mark.parametrize("rule", get_args(SetRule))
def test_equal_images_teach_nothing(rule: SetRule) -> None:
    separate = {"a": np.full((2, 3), 0.3), "b": np.full((2, 3), 0.7)}
    np.testing.assert_allclose(found(separate, WEIGHTS, rule), 0, atol=1e-10)


def test_per_reward_ignores_a_rewards_scale_and_the_sum_does_not() -> None:
    separate = random_set()
    wider = separate | {"b": 50 * separate["b"]}
    for rule in ("per_reward", "gdpo"):
        np.testing.assert_allclose(found(separate, WEIGHTS, rule), found(wider, WEIGHTS, rule), rtol=0.05, atol=0.02)
    assert abs(found(separate, WEIGHTS, "sum") - found(wider, WEIGHTS, "sum")).max() > 0.5


def test_a_rule_without_effect_or_sense_is_refused(tiny_tasks) -> None:
    with pytest.raises(UsageError, match="gdpo does nothing, because no task has several rewards"):
        resolve("single_task", ["ocr"], overrides=["params.reward_set=gdpo"])
    two = ["rewards.red.dark=1", "params.reward_set=gdpo"]
    for method, tasks in (("single_task", ["red"]), ("multi_reward", ["red", "ocr"]), ("cascade", ["red", "ocr"])):
        assert resolve(method, tasks, overrides=two).params["reward_set"] == "gdpo"
    with pytest.raises(UsageError, match=r"set params\.mixing per_reward"):
        resolve("multi_reward", ["red", "ocr"], overrides=[*two, "params.mixing=pooled"])
    with pytest.raises(UsageError, match=r"set params\.global_std true"):
        resolve("single_task", ["red"], overrides=[*two, "params.global_std=false"])
    allowed = [two[0], "params.reward_set=pareto", "params.mixing=pooled"]
    assert resolve("multi_reward", ["red", "ocr"], overrides=allowed).params["mixing"] == "pooled"
    plain = resolve("single_task", ["red"], overrides=[two[0]])
    assert "reward_set" not in plain.record()["params"]  # or every older run would have another name
