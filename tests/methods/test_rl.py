from typing import get_args

import numpy as np
import pytest
import torch

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.sampler.gaussian import Gaussian, Transition
from bench.sampler.rollout import Sampler
from bench.sampler.schedule import make_schedule
from bench.sampler.transitions import KERNELS, Coefficients
from methods.cascade import PREVIOUS, Cascade, CascadeOptions
from methods.multi_reward import MultiReward, MultiRewardOptions
from methods.rl.advantages import Mixing, advantages
from methods.rl.engine import Batch
from methods.rl.forward_process import OLD
from methods.rl.grpo import Grpo, GrpoOptions, surrogate
from methods.rl.grpo_guard import GrpoGuard, GrpoGuardOptions
from methods.rl.nft import Nft, NftOptions, optimality, policy_loss
from methods.rl.old_policy import OLD_DECAY
from methods.rl.ratios import Ratios, beyond, kl_between
from tests.methods.conftest import shake


def test_advantages_are_centred_in_each_group() -> None:
    rewards = {"a": np.random.default_rng(0).uniform(size=(6, 8)), "b": np.random.default_rng(1).uniform(size=(6, 8))}
    for mixing in get_args(Mixing):
        for values in advantages(rewards, mixing, True).values():
            np.testing.assert_allclose(values.mean(1), 0, atol=1e-12)
    flat = advantages({"a": np.ones((3, 4))}, "per_reward", True)["a"]
    np.testing.assert_array_equal(flat, 0)
    spread = advantages({"a": np.array([[0.0, 1.0], [0.0, 0.1]])}, "per_reward", False)["a"]
    np.testing.assert_allclose(spread[0], spread[1], rtol=5e-3)  # a group's own scale does not matter


@pytest.mark.parametrize("tasks", [["a"], ["a", "b"]])
def test_pooled_mixing_is_the_released_rule(tasks: list[str]) -> None:
    """Flow-GRPO's PerPromptStatTracker with global_std: rewards minus the prompt's mean, over the batch's deviation of
    all rewards; prompts' means of spread .3 are in it, where `raw` leaves them out."""
    rng = np.random.default_rng(0)
    rewards = {task: rng.normal(0, 0.3, (200, 1)) + rng.normal(0, 0.05, (200, 8)) for task in tasks}
    every = np.concatenate(list(rewards.values()))
    released = (every - every.mean(1, keepdims=True)) / (np.std(every) + 1e-4)
    found = advantages(rewards, "pooled", True)
    np.testing.assert_allclose(np.concatenate(list(found.values())), released)
    assert released.std() == pytest.approx(0.16, abs=0.03)
    assert np.concatenate(list(advantages(rewards, "raw", True).values())).std() == pytest.approx(1, abs=0.01)
    if len(tasks) == 1:
        np.testing.assert_array_equal(found["a"], advantages(rewards, "per_reward", True)["a"])


@pytest.mark.parametrize("mixing", ["pooled", "raw"])
def test_one_deviation_for_all_lets_the_wider_reward_dominate(mixing: str) -> None:
    narrow = np.random.default_rng(0).uniform(0.5, 0.51, size=(6, 8))
    wide = np.random.default_rng(1).uniform(0, 1, size=(6, 8))
    raw = advantages({"narrow": narrow, "wide": wide}, mixing, True)
    even = advantages({"narrow": narrow, "wide": wide}, "per_reward", True)
    assert raw["wide"].std() > 50 * raw["narrow"].std()
    assert even["wide"].std() == pytest.approx(even["narrow"].std(), rel=0.1)


def test_optimality_is_bounded() -> None:
    r = optimality(torch.tensor([-9.0, -5.0, 0.0, 2.5, 9.0]), 5.0)
    torch.testing.assert_close(r, torch.tensor([0.0, 0.0, 0.5, 0.75, 1.0]))


def test_nft_prefers_the_velocity_that_leads_to_good_pictures() -> None:
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


def test_nft_loss_matches_a_direct_transcription() -> None:
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
    shake(lab.backbone, STUDENT)
    Nft(NftOptions(old_decay="none")).after_update(lab)
    for old, new in zip(lab.backbone.adapters.parameters(OLD), lab.backbone.adapters.parameters(STUDENT)):
        torch.testing.assert_close(old, new)
    assert OLD_DECAY["slow"](200) == pytest.approx(0.2)
    assert OLD_DECAY["slow"](10_000) == 0.5
    assert OLD_DECAY["late"](74) == 0


@pytest.mark.parametrize(
    ("engine", "kernel", "eta"), [("nft", "ode", 0), ("grpo", "flow_sde", 0.7), ("grpo_guard", "cps", 0.8)]
)
def test_update_has_a_gradient_and_the_predicted_cost(make_lab, gradient, engine: str, kernel: str, eta: float) -> None:
    lab = make_lab(kernel, eta)
    lab.backbone.adapters.add(OLD, Shape(4, 8.0))
    sections = {"nft": NftOptions(timesteps=2, chunk=5), "grpo": GrpoOptions(chunk=5)}
    method = MultiReward(MultiRewardOptions(engine=engine, groups=3, group_size=4, **sections))
    lab.backbone.meter.nfe.clear()
    loss, grad = gradient(lab, method, "ocr")
    assert np.isfinite(loss)
    assert grad.norm() > 0
    assert sum(lab.backbone.meter.nfe.values()) == method.engine.passes(lab.sampler, Batch(3, 4)).nfe


def test_surrogate_is_ppo() -> None:
    log_ratio = torch.tensor([0.0, 0.3, -0.3, 0.3, -0.3]).requires_grad_()
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    loss = surrogate(log_ratio, advantage, 0.1)
    torch.testing.assert_close(loss, torch.tensor([-1.0, -1.1, -float(np.exp(-0.3)), float(np.exp(0.3)), 0.9]))
    loss.sum().backward()
    assert log_ratio.grad[1] == 0  # rewarded and already beyond the clip: no further push
    assert log_ratio.grad[4] == 0
    assert log_ratio.grad[0] == -1


def test_grpo_raises_the_probability_of_rewarded_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, noise = torch.randn(2, 3, 8, generator=generator)
    std = 0.4
    old = Gaussian(mean, std)
    drawn = old.sample(noise)
    sampler = Sampler(make_schedule(6), KERNELS["cps"], 0.8)
    for engine in (Grpo(GrpoOptions()), GrpoGuard(GrpoGuardOptions())):
        moving = mean.clone().requires_grad_()
        log_ratio = engine.log_ratio(Gaussian(moving, std), old, drawn)
        engine.policy(log_ratio, torch.tensor([1.0, -1.0, 0.0]), log_ratio.detach(), sampler, 2).sum().backward()
        towards = (moving.grad * (drawn - mean)).sum(1)
        assert towards[0] < 0 < towards[1]
        assert towards[2] == 0


def test_squared_error_is_the_released_log_probability_of_cps() -> None:
    """log p = -mean (x' - mean)^2 over elements, not divided by 2 std^2 and without constants."""
    generator = torch.Generator().manual_seed(0)
    means, noise = torch.randn(2, 5, 4, 3, 3, generator=generator), torch.randn(5, 4, 3, 3, generator=generator)
    std = 0.2
    drawn = means[0] + std * noise
    engine = Grpo(GrpoOptions(log_prob="squared_error"))
    measured = engine.log_ratio(Gaussian(means[1], std), Gaussian(means[0], std), drawn)
    new, old = (-((drawn - mean) ** 2).mean(dim=(1, 2, 3)) for mean in (means[1], means[0]))
    torch.testing.assert_close(measured, new - old)
    gaussian = Grpo(GrpoOptions()).log_ratio(Gaussian(means[1], std), Gaussian(means[0], std), drawn)
    torch.testing.assert_close(gaussian, measured / (2 * std**2))
    noisy = ["sampler.kernel=cps", "sampler.eta=0.8"]
    with pytest.raises(UsageError, match="log_prob"):
        settings = [*noisy, "params.engine=grpo_guard", "params.grpo_guard.log_prob=squared_error"]
        resolve("single_task", ["ocr"], overrides=settings)
    plain, released = (
        resolve("single_task", ["ocr"], overrides=[*noisy, "params.engine=grpo", *more])
        for more in ([], ["params.grpo.log_prob=squared_error"])
    )
    assert "log_prob" not in plain.record()["params"]["grpo"]  # or every older run would have another name
    assert released.params["grpo"]["log_prob"] == "squared_error"


def test_clipped_share_mean_ratio_and_kl_are_those_of_the_ratios(make_lab) -> None:
    lab, log_ratios = make_lab(), torch.tensor([[0.0, 0.3, -0.3], [0.05, -0.05, 0.2]])
    ratios = Ratios()
    for row in log_ratios:
        ratios.add(row, beyond(row, 0.1), 2 * row.abs())
    ratios.note(lab, "ocr", 1 / 6)
    assert lab.notes["ratio/ocr"] == pytest.approx(float(log_ratios.exp().mean()))
    assert lab.notes["clipped/ocr"] == pytest.approx(3 / 6)
    assert lab.notes["kl_old/ocr"] == pytest.approx(0.9 * 2 / 6)


def test_kl_between_policies_is_the_gaussians_and_leaves_gradients_alone() -> None:
    x, v_new, v_old = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    v_new.requires_grad_()
    new, old = (Transition(x, v, Coefficients(0.9, -0.2, 0.3)) for v in (v_new, v_old))
    found = kl_between(new, old)
    torch.testing.assert_close(found, new.kl(old).detach() / 48)
    assert not found.requires_grad
    assert new.mean.requires_grad


def test_guard_removes_the_bias_of_the_ratio() -> None:
    """Under the old policy E[log ratio] = -|shift|^2 / (2 std^2): corrected, its mean is 0."""
    generator = torch.Generator().manual_seed(0)
    std, shift, size = 0.3, 0.05, 64
    old = Gaussian(torch.zeros(4000, size, dtype=torch.float64), std)
    new = Gaussian(old.mean + shift, std)
    drawn = old.sample(torch.randn(old.mean.shape, generator=generator, dtype=torch.float64))
    log_ratio = (new.log_prob(drawn) - old.log_prob(drawn)) / size
    corrected = log_ratio + new.kl(old) / size
    assert float(log_ratio.mean()) == pytest.approx(-(shift**2) / (2 * std**2), rel=0.05)
    assert abs(float(corrected.mean())) < 4 * float(corrected.std()) / 4000**0.5


@pytest.mark.parametrize("kernel", ["flow_sde", "cps"])
def test_grpo_penalty_is_the_released_codes(make_lab, gradient, kernel: str) -> None:
    """(mean - reference's)^2 / (2 std_dev_t^2), where flow_sde's std_dev_t is g, without sqrt(h), and cps's is all."""
    lab = make_lab(kernel, 0.7)
    engine = MultiReward(MultiRewardOptions(engine="grpo", groups=1, group_size=2, grpo=GrpoOptions(kl=1.0)))
    with torch.no_grad():
        samples = engine.collect(lab, "ocr")
        samples.advantages = torch.zeros(2)
        measured = float(sum(engine.losses(lab, "ocr", samples)))
        expected, steps = 0.0, engine.engine.trained(lab.sampler)
        for k in steps:
            x, at, sigma = samples.trajectory.states[k], lab.sampler.coefficients[k], lab.sampler.schedule.sigmas[k]
            v, base = (lab.velocity(samples.conditioning, name)(x, sigma) for name in (STUDENT, None))
            std_dev_t = at.c / lab.sampler.schedule.h(k) ** 0.5 if kernel == "flow_sde" else at.c
            expected += float((at.b * (v - base)).square().mean() / (2 * std_dev_t**2)) / len(steps)
    assert measured == pytest.approx(expected, rel=1e-4)


def test_cascade_visits_tasks_in_order_and_moves_its_anchor(make_lab) -> None:
    lab = make_lab()
    lab.backbone.adapters.add(OLD, Shape(4, 8.0))
    lab.backbone.adapters.add(PREVIOUS, Shape(4, 8.0))
    cascade = Cascade(CascadeOptions(order=("ocr", "geneval"), anchor="previous"))
    seen = []
    for lab.last_progress, lab.progress in ((0.0, 0.0), (0.0, 0.3), (0.3, 0.6), (0.6, 0.99)):
        seen += list(cascade.plan(lab))
        same = all(map(torch.equal, *(lab.backbone.adapters.parameters(n) for n in (PREVIOUS, STUDENT))))
        assert same == (lab.progress >= 0.5)
    assert seen == ["ocr", "ocr", "geneval", "geneval"]


def test_weights_of_tasks(make_lab) -> None:
    lab = make_lab()
    assert MultiReward(MultiRewardOptions()).plan(lab) == {"geneval": 0.5, "ocr": 0.5}
    assert MultiReward(MultiRewardOptions(weights={"ocr": 3.0})).plan(lab) == {"geneval": 0.25, "ocr": 0.75}
    plain = resolve("multi_reward", ["geneval", "ocr"])
    assert "weights" not in plain.record()["params"]  # or every older run would have another name
    weighted = resolve("multi_reward", ["geneval", "ocr"], overrides=["params.weights.ocr=3"])
    assert weighted.params["weights"] == {"ocr": 3.0}
    assert weighted.digest("f") != plain.digest("f")
    with pytest.raises(UsageError, match="did you mean 'ocr'"):
        resolve("multi_reward", ["geneval", "ocr"], overrides=["params.weights.orc=3"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["params.engine=crd", "params.crd.kl=0", "params.crd.reference_guidance=3"],
            r"params\.crd\.reference_guidance does nothing because params\.crd\.kl is 0: leave it out",
        ),
        (
            ["params.engine=flow_dppo", "params.flow_dppo.inner_updates=1", "params.flow_dppo.max_kl=0.1"],
            r"params\.flow_dppo\.max_kl does nothing because params\.flow_dppo\.inner_updates is 1",
        ),
    ],
)
def test_settings_without_effect_beside_others_are_refused(overrides: list[str], told: str) -> None:
    stochastic = ["sampler.kernel=cps", "sampler.eta=0.8"] if "flow_dppo" in overrides[0] else []
    resolve("multi_reward", ["ocr"], overrides=[*stochastic, *overrides[:2]])
    with pytest.raises(UsageError, match=told):
        resolve("multi_reward", ["ocr"], overrides=[*stochastic, *overrides])
