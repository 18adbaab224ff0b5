"""Diffusion models on the path of a rectified flow: the same levels, timesteps and states as diffusers' schedulers."""

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from bench.backbones.diffusion import Diffusion
from bench.backbones.diffusion_scheduler import diffusion_fields
from bench.errors import UsageError
from bench.sampler.diffusion_levels import DiffusionLevels, timesteps
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.step import step
from bench.sampler.transitions import KERNELS

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(2, 4, 8, 8, generator=GENERATOR)


@pytest.mark.parametrize(
    "betas",
    [
        BETAS,
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        BETAS | {"rescale_betas_zero_snr": True},
    ],
)
def test_levels_are_those_of_diffusers(betas: dict[str, Any]) -> None:
    alpha_squared = diffusers.DDIMScheduler(**betas).alphas_cumprod.double().numpy()
    alpha, sigma = np.sqrt(alpha_squared), np.sqrt(1 - alpha_squared)
    told = diffusion_fields(betas | {"prediction_type": "v_prediction"}, "DDIMScheduler")
    np.testing.assert_allclose(told.levels().sigmas, sigma / (alpha + sigma), atol=5e-6)


@pytest.mark.parametrize("steps", [1, 5, 7, 25, 30, 48, 50, 333])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_timesteps_are_those_of_diffusers(kind: str, spacing: str, steps: int) -> None:
    config = {**BETAS, "timestep_spacing": spacing, "steps_offset": 1}
    theirs = getattr(diffusers, kind)(**config)
    theirs.set_timesteps(steps)
    assert timesteps(steps, diffusion_fields(config, kind).table, 1) == theirs.timesteps.tolist()


def predicted(x: Tensor, t: Tensor) -> Tensor:
    """A network: any function of a noisy image [B, C, h, w] and its timesteps [B] will do."""
    return torch.tanh(1.3 * x + (t / 400).view(-1, 1, 1, 1) - 1)


def diffusion_of(levels: DiffusionLevels, predicts: str):
    """The velocity field of that network."""
    diffusion = Diffusion(levels, predicts, "cpu")

    def velocity(y: Tensor, s: float | Tensor) -> Tensor:
        s_B = torch.as_tensor(s, dtype=torch.float32).expand(len(y))
        return diffusion.velocity(predicted(*diffusion.inputs(y, s_B)), y, s_B)

    return velocity


def theirs_of(kind: str, steps: int, config: dict[str, Any], **options: Any) -> Tensor:
    """The last state of diffusers' loop over a scheduler of a class."""
    scheduler = getattr(diffusers, kind)(**config)
    scheduler.set_timesteps(steps)
    x = NOISE * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = predicted(scheduler.scale_model_input(x, t), t.float().expand(len(x)))
        x = scheduler.step(out, t, x, **options).prev_sample
    return x


SAMPLERS = {
    "DDIM": ("DDIMScheduler", "ode", {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}),
    "DDIM to one": ("DDIMScheduler", "ode", {"steps_offset": 1, "clip_sample": False}),
    "DDIM trailing": ("DDIMScheduler", "ode", {"timestep_spacing": "trailing", "clip_sample": False}),
    "Euler": ("EulerDiscreteScheduler", "ode", {"timestep_spacing": "leading", "steps_offset": 1}),
    "Euler linspace": ("EulerDiscreteScheduler", "ode", {}),
    "Euler trailing": ("EulerDiscreteScheduler", "ode", {"timestep_spacing": "trailing"}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", "dpm2", {}),
    "DPM-Solver++ 2M leading": (
        "DPMSolverMultistepScheduler", "dpm2", {"timestep_spacing": "leading", "steps_offset": 1},
    ),
    "DPM-Solver++ 2M to the least": (
        "DPMSolverMultistepScheduler", "dpm2", {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_states_are_those_of_diffusers(name: str, predicts: str) -> None:
    kind, kernel, own = SAMPLERS[name]
    config = BETAS | own | {"prediction_type": predicts}
    told = diffusion_fields(config, kind)
    for steps in (1, 5, 7, 10) if "trailing" not in name or kind != "DDIMScheduler" else (1, 5, 10):
        schedule = told.levels().schedule(steps)
        sampler = Sampler(schedule, KERNELS[kernel])
        ours = rollout(diffusion_of(told.levels(), predicts), NOISE, sampler, torch.Generator()).final
        theirs = theirs_of(kind, steps, config)
        assert torch.allclose(ours, theirs, atol=2e-5), (steps, (ours - theirs).abs().max())


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_with_noise_takes_the_steps_of_diffusers(eta: float, to_one: bool) -> None:
    config = BETAS | {"steps_offset": 1, "set_alpha_to_one": to_one, "clip_sample": False}
    levels = diffusion_fields(config, "DDIMScheduler").levels()
    scheduler, sampler = diffusers.DDIMScheduler(**config), Sampler(levels.schedule(5), KERNELS["ddim"], eta)
    scheduler.set_timesteps(5)
    velocity, x, y = diffusion_of(levels, "epsilon"), NOISE, sampler.schedule.start * NOISE
    for k, t in enumerate(scheduler.timesteps):
        noise = torch.randn(NOISE.shape, generator=GENERATOR)
        out = predicted(x, t.float().expand(len(x)))
        x = scheduler.step(out, t, x, eta=eta, variance_noise=noise).prev_sample
        y = step(y, velocity(y, sampler.schedule.sigmas[k]), sampler.coefficients[k], noise=noise).next
        scale = math.hypot(1 - sampler.schedule.sigmas[k + 1], sampler.schedule.sigmas[k + 1]) if k < 4 else 1
        assert torch.allclose(y / scale, x, atol=2e-5)


def test_euler_ancestral_is_ddim_at_eta_1(monkeypatch) -> None:
    kind = "diffusers.schedulers.scheduling_euler_ancestral_discrete"
    drawn = [torch.randn(NOISE.shape, generator=GENERATOR) for _ in range(5)]
    left = iter(drawn)
    monkeypatch.setattr(f"{kind}.randn_tensor", lambda *args, **kwargs: next(left))
    config = BETAS | {"timestep_spacing": "leading", "steps_offset": 1}
    theirs = theirs_of("EulerAncestralDiscreteScheduler", 5, config)
    levels = diffusion_fields(config, "EulerAncestralDiscreteScheduler").levels()
    sampler, velocity = Sampler(levels.schedule(5), KERNELS["ddim"], 1.0), diffusion_of(levels, "epsilon")
    y = sampler.schedule.start * NOISE
    for k, at in enumerate(sampler.coefficients):
        y = step(y, velocity(y, sampler.schedule.sigmas[k]), at, noise=drawn[k]).next
    assert torch.allclose(y, theirs, atol=2e-5)


def test_v_is_defined_at_noise_alone() -> None:
    config = BETAS | {
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
        "clip_sample": False,
    }  # fmt: skip
    levels = diffusion_fields(config, "DDIMScheduler").levels()
    schedule = levels.schedule(5)
    assert schedule.sigmas[0] == schedule.start == 1
    ours = rollout(diffusion_of(levels, "v_prediction"), NOISE, Sampler(schedule, KERNELS["ode"]), torch.Generator())
    assert torch.allclose(ours.final, theirs_of("DDIMScheduler", 5, config), atol=2e-5)


def test_timesteps_between_two_are_interpolated() -> None:
    levels = DiffusionLevels()
    diffusion = Diffusion(levels, "epsilon", "cpu")
    wanted = torch.tensor([0.0, 1.0, 500.25, 998.5, 999.0])
    ratios = [s / (1 - s) for s in levels.sigmas]
    between = [np.interp(t, range(1000), ratios) for t in wanted.tolist()]
    s_B = torch.tensor([ratio / (1 + ratio) for ratio in between], dtype=torch.float32)
    assert torch.allclose(diffusion.inputs(NOISE[:1].expand(5, -1, -1, -1), s_B)[1], wanted, atol=2e-3)
    every = torch.tensor(levels.sigmas, dtype=torch.float32)
    assert torch.equal(diffusion.inputs(torch.zeros(1000, 1, 1, 1), every)[1], torch.arange(1000.0))


@pytest.mark.parametrize(
    ("table", "steps", "shift", "said"),
    [
        ("once", 5, None, "table of sigmas 'once'"),
        (None, 5, 3.0, "leave out sampler.shift"),
        (None, 0, None, "at least 1"),
        ("leading", 1000, None, "1000 steps are too many for the table 'leading' with an offset of 1"),
        ("dpm_linspace", 1000, None, "too many"),
    ],
)
def test_schedules_that_do_not_exist_are_refused(table, steps: int, shift, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        DiffusionLevels(offset=1).schedule(steps, table, shift)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
        ("DPMSolverMultistepScheduler", {"rescale_betas_zero_snr": True}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
        ("DDIMScheduler", {"beta_end": 1.5}),
        ("DDIMScheduler", {"prediction_type": "flow_prediction"}),
    ],
)
def test_options_that_change_images_are_refused_by_their_name(kind: str, option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(option))):
        diffusion_fields(BETAS | option, kind)
    # What another class does not read may be carried along.
    if next(iter(option)) in ("solver_type", "algorithm_type", "interpolation_type", "lambda_min_clipped"):
        assert diffusion_fields(BETAS | option, "PNDMScheduler").levels() == diffusion_fields(BETAS, "PNDMScheduler").levels()


def test_a_step_that_would_do_nothing_is_none() -> None:
    """Where the last timestep is 0, diffusers' last step goes from its level to itself."""
    schedule = DiffusionLevels(to_zero=False).schedule(5, "linspace")
    assert schedule.sigmas[-1] == 0 and schedule.end == 1 and schedule.h(4) > 0
