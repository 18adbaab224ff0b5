"""PPO-style against analytic OPD on a linear-Gaussian policy, by exact quadrature in float64."""

import itertools

import numpy as np
import pytest
import torch

from bench.sampler.gaussian import Gaussian, Transition
from bench.sampler.weighting import released_kl_factor
from methods.opd_ppo import OpdPpo, OpdPpoOptions, advantages, ppo_loss

SIZE, STD = 3, 0.7
G = torch.tensor([0.4, -1.1, 0.3], dtype=torch.float64)  # d mean / d theta
MEAN = torch.tensor([0.2, 0.5, -0.3], dtype=torch.float64)
TEACHER = torch.tensor([-0.1, 0.9, 0.25], dtype=torch.float64)


def moments(kind: str) -> tuple[float, float]:
    """Exact mean and variance of the loss gradient in theta under y ~ student (Gauss-Hermite, degree 2n - 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    z = torch.tensor(list(itertools.product(nodes, repeat=SIZE)))
    w = torch.tensor([np.prod(p) for p in itertools.product(weights / weights.sum(), repeat=SIZE)])
    theta = torch.zeros(len(z), 1, dtype=torch.float64, requires_grad=True)
    new, old = Gaussian(MEAN + theta * G, STD), Gaussian(MEAN.expand(len(z), -1), STD)
    guide = Gaussian(TEACHER.expand(len(z), -1), STD)
    drawn = old.sample(z)
    to_go = guide.log_prob(drawn) - old.log_prob(drawn)
    ppo_loss(new, old, guide, drawn, kind, 0.2, to_go).sum().backward()
    gradient = theta.grad[:, 0]
    mean = float((w * gradient).sum())
    return mean, float((w * (gradient - mean) ** 2).sum())


DELTA, J = (MEAN - TEACHER) / STD, G / STD
PATHWISE = float(J @ DELTA) / SIZE  # gradient of the mean-form KL
KL, JJ = float(DELTA @ DELTA) / 2, float(J @ J)


@pytest.mark.parametrize(
    ("kind", "mean", "variance"),
    [
        ("log_ratio", PATHWISE, ((2 * KL) ** 2 * JJ / 4 + 2 * KL * JJ + float(J @ DELTA) ** 2) / SIZE**2),
        ("log_ratio_centred", PATHWISE, (2 * KL * JJ + float(J @ DELTA) ** 2) / SIZE**2),
        ("return_to_go", PATHWISE, ((2 * KL) ** 2 * JJ / 4 + 2 * KL * JJ + float(J @ DELTA) ** 2) / SIZE**2),
        ("state_kl_detached", 0.0, KL**2 * JJ / SIZE**4),
        ("state_kl", PATHWISE, KL**2 * JJ / SIZE**4),
    ],
)
def test_mean_and_variance_are_the_closed_forms(kind: str, mean: float, variance: float) -> None:
    measured_mean, measured_variance = moments(kind)
    assert measured_mean == pytest.approx(mean, abs=1e-9)
    assert measured_variance == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize("kernel", ["flow_sde", "cps"])
def test_state_kl_no_dt_is_flow_opds_code(make_lab, kernel: str) -> None:
    """A = clip(-(mean - teacher's)^2 / (2 std_dev_t^2), 5) with its gradient; flow_sde's std_dev_t is without sqrt(h)."""
    lab = make_lab(kernel, 0.7)
    k, x = 2, torch.randn(3, *lab.backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    at, h = lab.sampler.coefficients[k], lab.sampler.schedule.h(k)
    v, v_teacher, z = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(1))
    v = v.requires_grad_()
    new, old, guide = Transition(x, v, at), Transition(x, v.detach(), at), Transition(x, v_teacher, at)
    drawn = old.sample(z)
    released = released_kl_factor(lab.sampler, k)
    mine = advantages(new, old, guide, drawn, "state_kl_no_dt", torch.zeros(3), released)
    std_dev_t = at.c / h**0.5 if kernel == "flow_sde" else at.c
    theirs = (-((new.mean - guide.mean) ** 2).mean((1, 2, 3)) / (2 * std_dev_t**2)).clamp(-5, 5)
    torch.testing.assert_close(mine, theirs)
    (grad,) = torch.autograd.grad(mine.sum(), v, retain_graph=True)
    torch.testing.assert_close(grad, torch.autograd.grad(theirs.sum(), v)[0])
    true = advantages(new, old, guide, drawn, "state_kl", torch.zeros(3), released)
    torch.testing.assert_close(mine, (true * (h if kernel == "flow_sde" else 1)).clamp(-5, 5))


def test_the_first_update_on_trajectories_has_ratio_one_and_clips_nothing(make_lab, gradient) -> None:
    lab = make_lab("flow_sde", 0.7)
    gradient(lab, OpdPpo(OpdPpoOptions(trajectories=4)), "ocr")
    assert lab.notes["ratio/ocr"] == pytest.approx(1, abs=1e-5)
    assert lab.notes["clipped/ocr"] == 0


def test_analytic_gradient_is_that_mean_without_variance() -> None:
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    kl = Gaussian((MEAN + theta * G)[None], STD).kl(Gaussian(TEACHER[None], STD)) / SIZE
    kl.sum().backward()
    assert float(theta.grad) == pytest.approx(PATHWISE, abs=1e-12)


def test_excess_variance_on_a_network_is_the_closed_form(make_lab) -> None:
    from methods.opd_ppo_excess import excess

    (row,) = excess(make_lab("cps", 0.8), "ocr", [2], states=4, draws=64)
    assert row.predicted > 0
    assert row.ratio.value == pytest.approx(1, abs=0.25)
    assert row.ratio.low < 1.2
    assert row.ratio.high > 0.8
