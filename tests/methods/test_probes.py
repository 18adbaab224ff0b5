"""Probes against quantities known in closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.probes.estimates import ProbeLab, nested, task_gradients
from bench.probes.gradient import GradientNoise, gradient_noise
from bench.probes.interference import interference, layer_groups
from methods.opd_analytic import OpdAnalytic, OpdOptions
from methods.opd_ppo import OpdPpo, OpdPpoOptions


def test_a_probe_sees_no_prompts_that_training_draws(make_lab) -> None:
    """Its seeds are others, also where a state's number is the run's seed; and it foresees nothing."""
    lab = make_lab()
    training = {step: [p.text for p in replace(lab, seed=0, step=step).prompts("ocr", 24)] for step in (0, 7)}
    probe = ProbeLab.of(replace(lab, step=7)).at(0, 0)
    assert [p.text for p in probe.prompts("ocr", 24)] not in training.values()
    assert list(probe._upcoming()) == []


def test_noise_components_of_known_gaussians() -> None:
    """mean m, states N(0, 4 I), estimator N(0, I) in 50 dimensions."""
    generator = torch.Generator().manual_seed(0)
    size, mean = 50, torch.full((50,), 0.3)
    draw = lambda: torch.randn(size, generator=generator)
    groups = []
    for _ in range(300):
        centre = mean + 2 * draw()
        groups.append([centre + draw() for _ in range(3)])
    noise = gradient_noise(groups)
    assert noise.moments.from_states == pytest.approx(4 * size, rel=0.05)
    assert noise.moments.from_estimator == pytest.approx(size, rel=0.05)
    assert noise.moments.signal == pytest.approx(0.09 * size, rel=0.5)
    assert noise.snr.low <= 0.09 / 5 <= noise.snr.high
    assert noise.cosine(mean) > 0.7


def test_scale_changes_the_trace_but_not_the_ratio() -> None:
    generator = torch.Generator().manual_seed(1)
    groups = [[1 + torch.randn(20, generator=generator) for _ in range(2)] for _ in range(50)]
    small, large = gradient_noise([[g / 100 for g in group] for group in groups]), gradient_noise(groups)
    assert small.moments.trace == pytest.approx(large.moments.trace / 1e4, rel=1e-4)
    assert small.snr.value == pytest.approx(large.snr.value, rel=1e-4)


def test_no_noise_is_an_infinite_ratio() -> None:
    vector = torch.tensor([1.0, 2.0])
    assert gradient_noise([[vector, vector], [vector, vector]]).moments.snr == float("inf")


def probe_lab(lab) -> ProbeLab:
    return ProbeLab.of(lab)


def test_ode_opd_has_no_noise_of_its_own(make_lab) -> None:
    lab = probe_lab(make_lab())
    noise = gradient_noise(nested(OpdAnalytic(OpdOptions(trajectories=3)), lab, ("geneval", "ocr"), range(3), 2))
    assert noise.moments.from_estimator == pytest.approx(0, abs=1e-6 * noise.moments.trace)
    assert noise.moments.from_states > 0


def test_sampled_log_ratio_is_noisier_than_the_closed_form(make_lab) -> None:
    lab = probe_lab(make_lab("flow_sde", 0.7))
    analytic = gradient_noise(
        nested(OpdAnalytic(OpdOptions(trajectories=3, weighting="kl")), lab, ("ocr",), range(4), 2)
    )
    sampled = gradient_noise(nested(OpdPpo(OpdPpoOptions(trajectories=3)), lab, ("ocr",), range(4), 2))
    assert sampled.moments.snr < 0.5 * analytic.moments.snr


@pytest.mark.parametrize("kernel", ["flow_sde", "ode"])
def test_noise_levels_split_the_gradient(make_lab, kernel: str) -> None:
    """Per-level gradients add up to the whole one, and the untrained last level has none."""
    lab = probe_lab(make_lab(kernel, 0.7 if kernel == "flow_sde" else 0.0))
    method = OpdAnalytic(OpdOptions(trajectories=3, weighting="velocity"))
    whole = task_gradients(method, lab, ("ocr",))["ocr"]
    levels = [
        task_gradients(method, replace(lab, sigma=sigma), ("ocr",))["ocr"] for sigma in lab.sampler.schedule.sigmas[:-1]
    ]
    assert not levels[-1].any()
    assert all(level.any() for level in levels[:-1])
    assert torch.allclose(sum(levels), whole, atol=1e-6 * float(whole.abs().max()))


def test_slope_sees_a_mean_that_is_not_the_same() -> None:
    """Along a reference, one Gaussian family against another with 0.7 of its mean."""
    generator = torch.Generator().manual_seed(2)
    mean = torch.full((40,), 0.5)
    draw = lambda factor: [[factor * mean + 0.3 * torch.randn(40, generator=generator)] for _ in range(100)]
    first, same, short = (gradient_noise(draw(f), reference=mean) for f in (1, 1, 0.7))
    assert same.slope(first).low <= 1 <= same.slope(first).high
    assert short.slope(first).low <= 0.7 <= short.slope(first).high < 0.9


def test_slopes_interval_covers_under_heavy_tails() -> None:
    """A dozen states, noise as sampled log-ratios have it: products of normals on log-normal scales."""
    rng = np.random.default_rng(0)
    noise = lambda along: GradientNoise(torch.zeros(1), np.zeros((12, 12)), 1, along)
    covered = 0
    for _ in range(400):
        base = 1 + 0.5 * rng.standard_normal(12)
        other = base + 3 * rng.standard_normal((12, 2)).prod(1) * np.exp(rng.standard_normal(12))
        found = noise(other).slope(noise(base))
        covered += found.low <= 1 <= found.high
    assert covered / 400 > 0.93


def test_snr_interval_covers_with_a_dozen_states() -> None:
    generator, mean, covered = torch.Generator().manual_seed(3), torch.full((30,), 0.5), 0
    for _ in range(200):
        found = gradient_noise([[mean + torch.randn(30, generator=generator)] for _ in range(12)]).snr
        covered += found.low <= 0.25 <= found.high
    assert 0.9 <= covered / 200 <= 0.99
    assert np.isnan(gradient_noise([[mean], [mean + 1]]).snr.low)  # two states have no jackknife


def test_interference_of_identical_and_opposite_teachers(make_lab) -> None:
    lab = probe_lab(make_lab())
    method = OpdAnalytic(OpdOptions(trajectories=3))
    cosines = interference(method, lab, ("geneval", "ocr"), 2)
    assert set(cosines) == {"geneval | ocr", "geneval | geneval", "ocr | ocr"}
    assert set(cosines["ocr | ocr"]) == {"all", "block 0", "block 1", "block 2", "block 3"}
    assert cosines["ocr | ocr"]["all"] > abs(cosines["geneval | ocr"]["all"])
    other = interference(method, replace(lab, seed=1), ("geneval", "ocr"), 2)
    assert other["geneval | ocr"]["all"] != cosines["geneval | ocr"]["all"]  # every run draws states of its own
    before = [p.clone() for p in lab.backbone.adapters.parameters("student")]
    task_gradients(method, lab, ("ocr",))
    assert all(map(torch.equal, before, lab.backbone.adapters.parameters("student")))


def test_layer_groups() -> None:
    names = {
        "transformer_blocks.3.attn.to_q.lora_A.weight": "block 3",
        "single_transformer_blocks.3.attn.to_q.lora_A.weight": "single_transformer_blocks 3",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": "down_blocks 1",
        "mid_block.attentions.0.transformer_blocks.1.attn1.to_q.lora_A.weight": "mid_block.attentions 0",
        "proj_out": "other",
    }
    assert layer_groups(list(names)) == list(names.values())
