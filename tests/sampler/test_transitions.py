"""Kernels against identities, against diffusers, and against exactly computed marginals on Gaussian targets."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from bench.errors import UsageError
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.schedule import Schedule, make_schedule
from bench.sampler.step import step
from bench.sampler.transitions import KERNELS, Coefficients, get_kernel

TABLES = [make_schedule(10), make_schedule(10, table="once"), make_schedule(4)]
ETAS = {"ode": 0.0, "dpm2": 0.0, "flow_sde": 0.7, "dance_sde": 0.3, "ddim": 0.8, "cps": 0.8}


def gaussian_velocity(s: float, mean: float, spread: float) -> tuple[float, float]:
    """v(x) = slope x + offset, exact for x0 ~ N(mean, spread^2)."""
    variance = (1 - s) ** 2 * spread**2 + s**2
    slope = (s - (1 - s) * spread**2) / variance
    return slope, -mean - slope * (1 - s) * mean


def moments(coefficients: list[Coefficients], schedule: Schedule, mean: float, spread: float) -> tuple[float, float]:
    """Mean and variance at sigma 0 by the exact recursion from N(0, 1) (one-step kernels)."""
    m, variance = 0.0, 1.0
    for at, s in zip(coefficients, schedule.sigmas):
        slope, offset = gaussian_velocity(s, mean, spread)
        m, variance = (at.a + at.b * slope) * m + at.b * offset, (at.a + at.b * slope) ** 2 * variance + at.c**2
    return m, variance


@pytest.mark.parametrize("schedule", TABLES)
def test_euler_equals_diffusers(schedule: Schedule) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[0.5])  # replaced below: the scheduler must step on exactly our sigmas
    scheduler.sigmas = torch.tensor(schedule.sigmas)
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    generator = torch.Generator().manual_seed(0)
    x = theirs = torch.randn(3, 4, 8, 8, generator=generator)
    for k, at in enumerate(KERNELS["ode"].coefficients(schedule, 0.0)):
        v = torch.randn(x.shape, generator=generator)
        x = step(x, v, at).next
        theirs = scheduler.step(v, scheduler.timesteps[k], theirs).prev_sample
    torch.testing.assert_close(x, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", TABLES)
@pytest.mark.parametrize("name", ["flow_sde", "dance_sde", "ddim", "cps"])
def test_every_kernel_is_euler_at_eta_zero(schedule: Schedule, name: str) -> None:
    for mine, euler in zip(KERNELS[name].coefficients(schedule, 0.0), KERNELS["ode"].coefficients(schedule, 0.0)):
        assert (mine.a, mine.b, mine.c) == pytest.approx((euler.a, euler.b, 0.0), abs=1e-12)


@pytest.mark.parametrize("schedule", TABLES)
def test_table_of_the_design(schedule: Schedule) -> None:
    """The published forms, written independently of _sde and _affine."""
    eta = 0.7
    for k, (s, n) in enumerate(zip(schedule.sigmas, schedule.sigmas[1:])):
        dt = n - s
        for name in ("flow_sde", "dance_sde"):
            g = eta if name == "dance_sde" else eta * math.sqrt(s / (1 - (schedule.sigmas[1] if s == 1 else s)))
            at = KERNELS[name].coefficients(schedule, eta)[k]
            assert at.a == pytest.approx(1 + g**2 * dt / (2 * s))
            assert at.b == pytest.approx(dt * (1 + g**2 * (1 - s) / (2 * s)))
            assert at.c == pytest.approx(g * math.sqrt(-dt))
        at = KERNELS["cps"].coefficients(schedule, eta)[k]
        kept = n * math.cos(eta * math.pi / 2)
        assert (at.a, at.b) == pytest.approx((1 - n + kept, kept * (1 - s) - s * (1 - n)))
        assert at.c == pytest.approx(n * math.sin(eta * math.pi / 2))
        at = KERNELS["ddim"].coefficients(schedule, eta)[k]
        rho = eta * n * math.sqrt(1 - n**2 * (1 - s) ** 2 / (s**2 * (1 - n) ** 2))
        kept = math.sqrt(n**2 - rho**2)
        assert (at.a, at.b, at.c) == pytest.approx((1 - n + kept, kept * (1 - s) - s * (1 - n), rho))


def test_flow_sde_patch_at_pure_noise() -> None:
    at = KERNELS["flow_sde"].coefficients(make_schedule(10), 0.7)[0]
    assert at.c == pytest.approx(0.7)
    assert (at.a, at.b) == pytest.approx((1 - 0.7**2 / 2, -make_schedule(10).h(0)))


@pytest.mark.parametrize("name", ["ode", "flow_sde", "dance_sde", "ddim"])
def test_marginals_reach_the_target_with_many_steps(name: str) -> None:
    """Solvers of the true (stochastic) differential equation end in the data distribution."""
    schedule = make_schedule(2000, 1.0, "once")
    m, variance = moments(KERNELS[name].coefficients(schedule, ETAS[name]), schedule, 0.4, 0.6)
    assert m == pytest.approx(0.4, abs=4e-3)
    assert variance == pytest.approx(0.36, abs=6e-3)


@pytest.mark.parametrize("schedule", TABLES)
@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.5), ("ddim", 1.0), ("cps", 0.5), ("cps", 0.8)])
def test_ddim_and_cps_keep_the_noise_level(schedule: Schedule, name: str, eta: float) -> None:
    """With a perfect velocity on one picture the next state's noise is exactly n, at any eta."""
    for s, n, at in zip(schedule.sigmas, schedule.sigmas[1:], KERNELS[name].coefficients(schedule, eta)):
        slope, _ = gaussian_velocity(s, 0.3, 0.0)
        assert (at.a + at.b * slope) ** 2 * s**2 + at.c**2 == pytest.approx(n**2, abs=1e-12)


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_flow_sde_has_excess_noise(eta: float) -> None:
    schedule = make_schedule(10)
    for k, at in enumerate(KERNELS["flow_sde"].coefficients(schedule, eta)):
        s, n, h = schedule.sigmas[k], schedule.sigmas[k + 1], schedule.h(k)
        if k == 0:
            continue
        g2 = eta**2 * s / (1 - s)
        variance = (at.a + at.b / s) ** 2 * s**2 + at.c**2
        assert variance == pytest.approx(n**2 + g2 * h**2 / s * (1 + g2 / (4 * s)), rel=1e-9)


@pytest.mark.parametrize("name", ["ode", "flow_sde", "dance_sde", "ddim", "cps"])
def test_rollout_has_the_computed_marginals(name: str) -> None:
    sampler = Sampler(make_schedule(6), KERNELS[name], ETAS[name])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4000, 1, 5, 5, generator=generator)

    def velocity(x: torch.Tensor, s: float) -> torch.Tensor:
        slope, offset = gaussian_velocity(s, 0.4, 0.6)
        return slope * x + offset

    final = rollout(velocity, x, sampler, generator).final
    m, variance = moments(sampler.coefficients, sampler.schedule, 0.4, 0.6)
    assert final.mean() == pytest.approx(m, abs=5 * math.sqrt(variance / final.numel()))
    assert final.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / final.numel()))


def test_dpm2_is_second_order_and_euler_first() -> None:
    """Halving the steps' length divides the error by about four, or by about two."""

    def error(name: str, steps: int) -> float:
        # Start inside the path: log-SNR is infinite at sigma 1, where every multistep solver is first order.
        schedule = Schedule(tuple(np.linspace(0.9, 0.1, steps + 1)))
        x = torch.tensor([[0.7]], dtype=torch.float64)
        start, previous = x, None
        for k, at in enumerate(KERNELS[name].coefficients(schedule, 0.0)):
            s = schedule.sigmas[k]
            slope, offset = gaussian_velocity(s, 0.4, 0.6)
            v = slope * x + offset
            x, previous = step(x, v, at, x0_prev=previous).next, x - s * v
        scale = lambda s: math.sqrt((1 - s) ** 2 * 0.36 + s**2)
        exact = 0.9 * 0.4 + (start - 0.1 * 0.4) * scale(0.1) / scale(0.9)
        return abs(float(x - exact))

    assert 3.2 < error("dpm2", 80) / error("dpm2", 160) < 5
    assert 1.8 < error("ode", 80) / error("ode", 160) < 2.2


def test_unknown_kernel_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="flow_sde"):
        get_kernel("flowsde")


@pytest.mark.parametrize(
    ("name", "eta"),
    [("ode", 0.1), ("dpm2", 0.1), ("ddim", 1.1), ("cps", 2.0), ("flow_sde", -0.1), ("dance_sde", math.nan)],
)
def test_eta_outside_the_kernel_is_refused(name: str, eta: float) -> None:
    with pytest.raises(UsageError, match="eta"):
        KERNELS[name].coefficients(make_schedule(10), eta)
