"""Rules of merging against direct implementations, one element after the other in float64."""

import numpy as np
import pytest
import torch

from bench.api.lab import STUDENT
from bench.config.resolve import resolve
from bench.errors import UsageError
from methods.merge import Merge, MergeOptions
from methods.merging import averaged, dropped, elected_mean, summed, trimmed
from tests.methods.conftest import TASKS

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}


def changes(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {task: torch.randn(6, 5, generator=generator) for task in WEIGHTS}


def trimmed_directly(values: np.ndarray, density: float) -> np.ndarray:
    order = sorted(range(values.size), key=lambda i: -abs(values.flat[i]))
    kept = np.zeros(values.size)
    for i in order[: int(density * values.size)]:
        kept[i] = values.flat[i]
    return kept.reshape(values.shape)


def elected_directly(values: dict[str, np.ndarray], weights: dict[str, float]) -> np.ndarray:
    first = next(iter(values.values()))
    merged = np.zeros(first.shape)
    for place in np.ndindex(first.shape):
        summed = sum(weights[task] * values[task][place] for task in values)
        sign = 1 if summed >= 0 else -1
        agree = [task for task in values if weights[task] and sign * values[task][place] > 0]
        if agree:
            whole = sum(weights[task] for task in agree)
            merged[place] = sum(weights[task] * values[task][place] for task in agree) / whole
    return merged


@pytest.mark.parametrize("weights", [dict.fromkeys(WEIGHTS, 1.0), WEIGHTS, WEIGHTS | {"b": 0.0}])
@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
def test_ties_keeps_the_largest_and_averages_those_with_the_elected_sign(density: float, weights: dict) -> None:
    given = changes()
    expected = {task: trimmed_directly(change.double().numpy(), density) for task, change in given.items()}
    found = elected_mean(trimmed(given, density), weights, 1.5)
    np.testing.assert_allclose(found.numpy(), 1.5 * elected_directly(expected, weights), rtol=1e-5, atol=1e-7)


def test_ties_by_hand() -> None:
    given = {"a": torch.tensor([3.0, -1.0, 2.0, 0.1]), "b": torch.tensor([1.0, 2.0, -2.5, 0.2])}
    # Half of each is kept: a = [3, 0, 2, 0], b = [0, 2, -2.5, 0]. At the third element b is elected.
    found = elected_mean(trimmed(given, 0.5), {"a": 1.0, "b": 1.0})
    torch.testing.assert_close(found, torch.tensor([3.0, 2.0, -2.5, 0.0]))


def test_a_soup_is_the_weighted_mean_and_at_a_corner_the_teacher() -> None:
    given = changes()
    expected = (given["a"] + 2 * given["b"] + 0.5 * given["c"]).double() / 3.5
    torch.testing.assert_close(averaged(given, WEIGHTS).double(), expected, rtol=1e-6, atol=1e-7)
    for rule in (averaged, elected_mean):
        torch.testing.assert_close(rule(given, {"a": 0.0, "b": 7.0, "c": 0.0}), given["b"])
    assert torch.equal(summed(given, dict.fromkeys(given, 1.0), 2.0), 2.0 * sum(given.values()))


def test_dare_keeps_elements_at_random_and_their_mean() -> None:
    change = {"a": torch.arange(1.0, 13.0).view(3, 4)}
    draws = [dropped(change, 0.3, {"a": np.random.default_rng(seed)})["a"] for seed in range(2000)]
    stacked = torch.stack(draws)
    kept = stacked != 0
    torch.testing.assert_close(stacked[kept], (change["a"] / 0.3).expand_as(stacked)[kept])
    assert kept.float().mean(0).sub(0.3).abs().max() < 0.05  # five standard errors
    # The same elements as those of the generator's numbers below the density.
    assert torch.equal(draws[5] != 0, torch.from_numpy(np.random.default_rng(5).random((3, 4)) < 0.3))


def merged(make_lab, monkeypatch, **options) -> tuple[list[np.ndarray], np.ndarray]:
    """The teachers' changes of one layer, and what the method gives the student for it, before its rank matters."""
    lab, given = make_lab(), {}
    adapters = lab.backbone.adapters
    teachers = [adapters.deltas(name) for name in lab.teachers.values()]
    monkeypatch.setattr(adapters, "set_deltas", lambda name, deltas: given.setdefault(name, deltas) and 0.5)
    Merge(MergeOptions(**options)).prepare(lab)
    assert lab.notes["energy_kept"] == 0.5
    layer = list(teachers[0])[1]
    return [delta[layer].double().numpy() for delta in teachers], given[STUDENT][layer].double().numpy()


def test_the_method_merges_exact_changes_of_every_layer(make_lab, monkeypatch) -> None:
    weights = dict(zip(TASKS, (1.0, 3.0)))
    (a, b), found = merged(make_lab, monkeypatch, weights=weights, scale=2.0)
    np.testing.assert_allclose(found, 2 * (a + 3 * b) / 4, rtol=1e-5, atol=1e-8)
    (a, b), found = merged(make_lab, monkeypatch, rule="sum", scale=0.5)
    np.testing.assert_allclose(found, (a + b) / 2, rtol=1e-5, atol=1e-8)
    (a, b), found = merged(make_lab, monkeypatch, rule="ties", density=0.3, weights=weights)
    trimmed_ones = dict(zip(TASKS, (trimmed_directly(a, 0.3), trimmed_directly(b, 0.3))))
    np.testing.assert_allclose(found, elected_directly(trimmed_ones, weights), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rule", ["dare_linear", "dare_ties"])
def test_dare_draws_for_the_run_and_the_task(make_lab, monkeypatch, rule: str) -> None:
    (a, b), found = merged(make_lab, monkeypatch, rule=rule, density=0.5)
    lab = make_lab()
    kept = []
    for task in TASKS:
        generator = lab.numpy_generator("dare", task)
        generator.random(a.shape)  # the layer before
        kept.append(generator.random(a.shape) < 0.5)
    assert (kept[0] != kept[1]).any()
    thinned = dict(zip(TASKS, (a * kept[0] / 0.5, b * kept[1] / 0.5)))
    equal = dict.fromkeys(TASKS, 1.0)
    expected = sum(thinned.values()) / 2 if rule == "dare_linear" else elected_directly(thinned, equal)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["params.weights.ocr=2"], "task in params.weights"),
        (["params.weights.geneval=0"], "are 0 for every task"),
        (["params.rule=sum", "params.weights.geneval=2"], "set params.rule average"),
        (["params.density=0.5"], "params.density does nothing with params.rule average"),
    ],
)
def test_contradictions_are_refused(settings: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        resolve("merge", ["geneval"], overrides=settings)


def test_a_merge_of_nothing_is_refused(make_lab) -> None:
    """Or a density that keeps no element would give the base, as a result."""
    lab = make_lab()
    with pytest.raises(UsageError, match="leaves no weight change: set a higher"):
        Merge(MergeOptions(rule="ties", density=1e-9)).prepare(lab)


def test_settings_added_later_leave_records_as_they_were() -> None:
    assert MergeOptions().record() == {"rule": "average", "scale": 1.0}
