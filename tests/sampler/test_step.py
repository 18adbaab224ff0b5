"""The step kernel: guidance, density, precision."""

import pytest
import torch

from bench.errors import BenchError
from bench.sampler.gaussian import Gaussian
from bench.sampler.rollout import Sampler, rollout, walk
from bench.sampler.schedule import make_schedule
from bench.sampler.step import guided, step
from bench.sampler.transitions import KERNELS

STOCHASTIC = [("flow_sde", 0.7), ("dance_sde", 0.3), ("ddim", 0.8), ("cps", 0.8)]


@pytest.mark.parametrize(("name", "eta"), STOCHASTIC)
def test_log_prob_equals_torch_distributions(name: str, eta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, v, noise = torch.randn(3, 2, 4, 5, 5, generator=generator, dtype=torch.float64)
    for at in KERNELS[name].coefficients(make_schedule(5), eta):
        if at.c == 0:
            continue
        taken = step(x, v, at, noise=noise)
        reference = torch.distributions.Normal(at.a * x + at.b * v, at.c).log_prob(taken.next).flatten(1).sum(1)
        torch.testing.assert_close(taken.log_prob, reference)


@pytest.mark.parametrize(("name", "eta"), STOCHASTIC)
def test_kl_equals_monte_carlo(name: str, eta: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x, v, w = torch.randn(3, 1, 1, 2, 3, generator=generator, dtype=torch.float64)
    for at in KERNELS[name].coefficients(make_schedule(4), eta):
        if at.c == 0:
            continue
        w_near = v + 0.3 * at.c / abs(at.b) * w  # policies close enough for Monte Carlo to resolve
        p, q = (Gaussian(at.a * x + at.b * u, at.c) for u in (v, w_near))
        draws = p.sample(torch.randn(200_000, 1, 2, 3, generator=generator, dtype=torch.float64))
        ratio = p.log_prob(draws) - q.log_prob(draws)
        assert abs(ratio.mean() - p.kl(q)) < 5 * ratio.std() / len(ratio) ** 0.5


def test_deterministic_transition_has_no_density_and_matches_means() -> None:
    p, q = Gaussian(torch.zeros(2, 3), 0.0), Gaussian(torch.ones(2, 3), 0.0)
    torch.testing.assert_close(p.kl(q), torch.tensor([1.5, 1.5]))
    with pytest.raises(BenchError, match="deterministic"):
        p.log_prob(torch.zeros(2, 3))
    with pytest.raises(BenchError, match="equal standard deviations"):
        p.kl(Gaussian(torch.zeros(2, 3), 1.0))


def test_std_is_a_scalar_when_channels_equal_steps() -> None:
    """A [1, S, 1, 1, 1] std broadcast over channels when S = C in a public fork."""
    sampler = Sampler(make_schedule(10), KERNELS["flow_sde"], 0.7)
    x, v = torch.randn(2, 10, 4, 4), torch.randn(2, 10, 4, 4)
    for at in sampler.coefficients:
        spread = step(x, v, at, noise=torch.ones_like(x)).next - step(x, v, at, noise=torch.zeros_like(x)).next
        torch.testing.assert_close(spread, torch.full_like(x, at.c), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.5])
def test_guidance(guidance: float) -> None:
    cond, uncond = torch.randn(2, 3, 4)
    torch.testing.assert_close(guided(cond, uncond, guidance), uncond + guidance * (cond - uncond))


@pytest.mark.parametrize(("name", "eta"), [("ode", 0.0), *STOCHASTIC])
def test_bfloat16_states_are_stepped_in_float32(name: str, eta: float) -> None:
    generator = torch.Generator().manual_seed(2)
    x, v, u, noise = torch.randn(4, 8, 4, 6, 6, generator=generator).bfloat16()
    for at in KERNELS[name].coefficients(make_schedule(10), eta):
        low = step(x, v, at, v_uncond=u, guidance=4.5, noise=noise)
        high = step(x.double(), v.double(), at, v_uncond=u.double(), guidance=4.5, noise=noise.double())
        assert low.next.dtype is torch.bfloat16
        assert (low.next.double() - high.next).norm() / high.next.norm() < 1e-2
        full = step(x.float(), v.float(), at, v_uncond=u.float(), guidance=4.5, noise=noise.float())
        assert (full.next.double() - high.next).norm() / high.next.norm() < 1e-5


def test_walk_and_rollout_agree_and_walk_detaches() -> None:
    sampler = Sampler(make_schedule(5), KERNELS["dpm2"])
    scale = torch.tensor(0.3, requires_grad=True)
    field = lambda x, s: scale * x + s
    x = torch.randn(2, 3, 4, 4)
    kept = rollout(field, x, sampler, torch.Generator(), keep=True)
    for k, state, taken in walk(field, x, sampler, torch.Generator()):
        torch.testing.assert_close(state, kept.states[k])
        assert not state.requires_grad
        assert taken.velocity.requires_grad
    torch.testing.assert_close(taken.next, kept.final)
    assert not kept.final.requires_grad


def test_stochastic_step_asks_for_noise() -> None:
    at = KERNELS["cps"].coefficients(make_schedule(4), 0.5)[0]
    with pytest.raises(ValueError, match="noise"):
        step(torch.zeros(1, 1), torch.zeros(1, 1), at)
