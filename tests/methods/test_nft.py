import numpy as np
import pytest
import torch

from bench.backbones.adapters import Shape
from bench.lab import STUDENT
from methods.nft import OLD, OLD_DECAY, DiffusionNft, NftOptions, optimality, policy_loss
from tests.methods.conftest import shake


def test_optimality_is_centred_and_bounded() -> None:
    rewards = np.random.default_rng(0).uniform(size=(6, 8))
    r = optimality(rewards, 5.0, True).reshape(6, 8)
    np.testing.assert_allclose(r.mean(1), 0.5)
    assert ((r >= 0) & (r <= 1)).all()
    np.testing.assert_allclose(optimality(np.ones((3, 4)), 5.0, True), 0.5)
    spread = optimality(np.array([[0.0, 1.0], [0.0, 0.1]]), 5.0, False).reshape(2, 2)
    np.testing.assert_allclose(spread[0], spread[1], atol=1e-3)  # per-group std: scale within a group does not matter


def test_loss_prefers_the_velocity_that_leads_to_good_pictures() -> None:
    """With r = 1 the gradient moves v towards the regression target, with r = 0 away from it."""
    generator = torch.Generator().manual_seed(0)
    x0, eps, off = torch.randn(3, 2, 4, 3, 3, generator=generator)
    sigma = torch.tensor([0.4, 0.7])
    x_t = torch.lerp(x0, eps, sigma.view(-1, 1, 1, 1))
    v_old = (eps - x0) + 0.3 * off
    for r, sign in ((1.0, -1), (0.0, 1)):
        v = v_old.clone().requires_grad_()
        policy_loss(v, v_old, x_t, x0, sigma, torch.full((2,), r), 1.0).sum().backward()
        towards_target = (v.grad * (eps - x0 - v_old)).sum()
        assert torch.sign(towards_target) == sign


def test_loss_matches_a_direct_transcription() -> None:
    generator = torch.Generator().manual_seed(1)
    x0, v, v_old, x_t = torch.randn(4, 3, 2, 2, 2, generator=generator)
    sigma, r, beta = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.1, 0.5, 0.8]), 0.3
    expected = []
    for i in range(3):
        plus, minus = beta * v[i] + (1 - beta) * v_old[i], (1 + beta) * v_old[i] - beta * v[i]
        gaps = [x_t[i] - sigma[i] * u - x0[i] for u in (plus, minus)]
        terms = [(g**2).mean() / g.abs().mean() for g in gaps]
        expected.append((r[i] * terms[0] + (1 - r[i]) * terms[1]) / beta)
    torch.testing.assert_close(policy_loss(v, v_old, x_t, x0, sigma, r, beta), torch.stack(expected))


def test_old_policy_follows_the_student(make_lab) -> None:
    lab = make_lab()
    lab.backbone.adapters.add(OLD, Shape(4, 8.0))
    nft = DiffusionNft(NftOptions(old_decay="none"))
    shake(lab.backbone, STUDENT)
    nft.after_update(lab)
    for old, new in zip(lab.backbone.adapters.parameters(OLD), lab.backbone.adapters.parameters(STUDENT)):
        torch.testing.assert_close(old, new)
    assert OLD_DECAY["slow"](200) == pytest.approx(0.2)
    assert OLD_DECAY["slow"](10_000) == 0.5
    assert OLD_DECAY["late"](74) == 0


def test_update_has_a_gradient_and_the_predicted_cost(make_lab, gradient) -> None:
    lab = make_lab()
    lab.backbone.adapters.add(OLD, Shape(4, 8.0))
    options = NftOptions(groups=3, group_size=4, timesteps=2, chunk=5)
    lab.backbone.meter.evaluations.clear()
    loss, grad = gradient(lab, DiffusionNft(options), "ocr")
    assert np.isfinite(loss)
    assert grad.norm() > 0
    assert sum(lab.backbone.meter.evaluations.values()) == 12 * (6 + 2 * 5)
