"""Measures beside scores: drift is that of the model's own path, and neither batches nor processes change them."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.analysis.diversity import IMAGES, PROMPTS, within_prompt
from bench.backbones.adapters import Shape
from bench.config.resolve import describe, resolve
from bench.prediction.cost import MEASURED
from bench.sampler.rollout import Sampler, rollout
from bench.scoring.loading import load_features, load_tasks
from bench.training.evaluate import Evaluation, design_of, evaluate, initial_noise, pictures
from bench.training.measures import Entry, Followed, chosen
from tests.methods.conftest import shake

GUIDANCE = 2.0


@pytest.fixture(scope="module")
def model():
    """A backbone with an adapter of random weights."""
    backbone = describe("micro").load("cpu")
    backbone.adapters.add("shaken", Shape(4, 8.0))
    shake(backbone, "shaken")
    return backbone


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return describe("micro").evaluation_sampler(resolve("merge", ["ocr"], overrides=["evaluation.steps=3"]))


def evaluated(model, sampler, task: str, adapter: str | None, batch: int = 96, space: bool = True) -> Evaluation:
    loaded = load_tasks((task,), "micro")[task]
    features = load_features("micro", {}) if space else None
    return evaluate(model, loaded, adapter, sampler, GUIDANCE, "validation", batch, space=features)


@pytest.fixture(scope="module")
def whole(model, sampler) -> Evaluation:
    return evaluated(model, sampler, "geneval", "shaken")


def velocity_of(model, conditioning, x: torch.Tensor, sigma: float, name: str | None = "shaken") -> torch.Tensor:
    return model.velocity(x, sigma, conditioning, name, GUIDANCE)


@torch.no_grad()
def test_drift_is_the_difference_along_the_model_s_path(model, sampler, whole: Evaluation) -> None:
    """By a loop over the steps of one image, with the model's and the base's velocity at the model's states."""
    prompts = load_tasks(("geneval",), "micro")["geneval"].prompts("validation")
    drift = whole.rows["drift"]
    rows = np.flatnonzero(~np.isnan(drift)).tolist()
    assert PROMPTS <= len(rows) <= PROMPTS + 6
    schedule = sampler.schedule
    for row in rows[:3]:
        conditioning = model.encode([prompts[row].text])
        velocity = partial(velocity_of, model, conditioning)
        x, total = initial_noise(model, "geneval", "validation", [Entry(row)]), 0.0
        path = rollout(velocity, x, sampler, torch.Generator(), keep=True)
        for k in range(schedule.steps):
            at, sigma = path.states[k], schedule.sigmas[k]
            gap = velocity(at, sigma) - velocity(at, sigma, None)
            total += schedule.h(k) * float(gap.square().mean())
        assert drift[row] == pytest.approx(total / sum(schedule.h(k) for k in range(schedule.steps)), rel=1e-3)


def test_the_base_has_no_drift_and_an_equal_adapter_none_at_all(model, sampler) -> None:
    assert "drift" not in evaluated(model, sampler, "ocr", None).rows
    model.adapters.add("equal", Shape(4, 8.0))  # B is zero
    drift = evaluated(model, sampler, "ocr", "equal").rows["drift"]
    assert np.nanmax(drift) < 1e-12 and (~np.isnan(drift)).sum() == PROMPTS


@torch.no_grad()
def test_diversity_is_that_of_four_images_of_a_prompt(model, sampler, whole: Evaluation) -> None:
    """One of them is the evaluation's own, the others have noise of their own."""
    task, space = load_tasks(("geneval",), "micro")["geneval"], load_features("micro", {})
    prompts = task.prompts("validation")
    (name,) = (metric for metric in whole.rows if metric.startswith("diversity@"))
    assert name == f"diversity@{space.name}"
    row = int(np.flatnonzero(~np.isnan(whole.rows[name]))[4])
    noise = torch.cat([initial_noise(model, "geneval", "validation", [Entry(row, again)]) for again in range(IMAGES)])
    assert len(torch.unique(noise, dim=0)) == IMAGES
    drawn = pictures(model, [prompts[row]] * IMAGES, noise, "shaken", sampler, GUIDANCE)
    expected = within_prompt(space.features(drawn)[None].numpy(), space.cosine)
    assert whole.rows[name][row] == pytest.approx(expected[0], rel=1e-3)


def test_passes_are_counted_as_predicted(model, sampler) -> None:
    """Guidance makes two of each; the base of an evaluation has no distance from itself."""
    prompts = load_tasks(("ocr",), "micro")["ocr"].prompts("validation")
    for adapter, paths in (("shaken", MEASURED), (None, MEASURED - PROMPTS)):
        before = model.meter.passes.forward
        evaluated(model, sampler, "ocr", adapter)
        assert model.meter.passes.forward - before == 2 * sampler.steps * (len(prompts) + paths)


def test_batches_change_nothing(model, sampler, whole: Evaluation) -> None:
    parts = evaluated(model, sampler, "geneval", "shaken", batch=7)
    assert parts.rows.keys() == whole.rows.keys()
    for metric, values in whole.rows.items():
        assert np.allclose(parts.rows[metric], values, atol=2e-3, equal_nan=True), metric


@pytest.mark.parametrize("mine", [0, 3, 10, 12])
def test_sharded_processes_make_equally_many_passes(model, sampler, monkeypatch, mine: int) -> None:
    """Twelve states of another process, in passes of five that compute.batch cuts into two."""
    prompts = load_tasks(("ocr",), "micro")["ocr"].prompts("validation")
    monkeypatch.setattr(model, "sharded", True)
    monkeypatch.setattr(model, "compute", model.compute.model_copy(update={"batch": 2}))
    sizes = []
    forward = model.transformer.register_forward_hook(lambda _, __, made: sizes.append(len(made[0])))
    followed = Followed(model, sampler, GUIDANCE, 5, range(mine))
    conditioning = model.encode([prompts[0].text])
    for row in range(mine):
        x = initial_noise(model, "ocr", "validation", [Entry(row)])
        followed.see(range(row, row + 1), x, 1.0, x, conditioning)
    found = followed.drifts(SimpleNamespace(gather=lambda count: [count, 12]))
    forward.remove()
    # Guidance doubles a pass instead of the number of passes.
    assert sizes == [4, 4, 2, 4, 4, 2, 4] and set(found) == set(range(mine))
    assert all(drift > 0 for drift in found.values())


def test_without_a_feature_space_only_drift_is_measured(model, sampler, whole: Evaluation) -> None:
    bare = evaluated(model, sampler, "geneval", "shaken", space=False)
    left = whole.rows.keys() - bare.rows.keys()
    assert {metric.partition("@")[0].partition(".")[0] for metric in left} == {
        "diversity", "diversity over prompts", "entropy",
    }  # fmt: skip
    for metric, values in bare.rows.items():
        assert np.array_equal(whole.rows[metric], values, equal_nan=True), metric


def test_an_attribute_that_captions_decide_is_averaged_over_the_others(whole: Evaluation) -> None:
    """Four of GenEval's tags leave the colour open; a scorer's metric that a stratum lacks has no mean."""
    assert set(whole.without("entropy.colour")) == {"colors", "color_attr"}
    parts = [part.mean() for part in whole.parts("entropy.colour").values() if len(part)]
    assert whole.estimate("entropy.colour").value == pytest.approx(np.mean(parts))
    scores = whole.rows | {"other": whole.rows["entropy.colour"]}
    assert np.isnan(dataclasses.replace(whole, rows=scores).estimate("other").value)


@pytest.mark.parametrize("task", ["geneval", "ocr"])
def test_prompts_to_measure_are_spread_over_strata(task: str) -> None:
    prompts = load_tasks((task,), "micro")[task].prompts("test")
    strata, clusters = design_of(prompts)
    rows = chosen(strata, clusters)
    assert len({prompts[row].text for row in rows}) == len(rows) == len(set(rows))
    counts = {name: (strata[rows] == name).sum() for name in set(strata.tolist())}
    assert len(rows) <= PROMPTS + len(counts) and min(counts.values()) >= min(2, PROMPTS // len(counts))


def test_every_stratum_has_two_prompts_to_measure() -> None:
    """One would say nothing about the spread over prompts."""
    strata = np.repeat([f"s{i}" for i in range(20)], 3)
    clusters = np.arange(60)
    clusters[:3] = 0  # a stratum with a single prompt
    rows = chosen(strata, clusters)
    assert [(strata[rows] == f"s{i}").sum() for i in range(20)] == [1, *[2] * 19]
