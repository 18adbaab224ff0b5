"""Noise in a window of steps, and the engines that build on it: Flow-DPPO and TempFlow-GRPO."""

import numpy as np
import pytest
import torch

from bench.api.lab import STUDENT
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.schedule import make_schedule
from bench.sampler.transitions import KERNELS, ode
from bench.sampler.window import Windowed
from methods.multi_reward import MultiReward, MultiRewardOptions
from methods.rl.flow_dppo import FlowDppo, FlowDppoOptions
from methods.rl.grpo import Grpo, GrpoOptions
from methods.rl.tempflow import TempFlow, TempFlowOptions
from methods.rl.windows import WindowOptions, check_window, windowed
from tests.methods.conftest import shake

NOISY = ["sampler.kernel=cps", "sampler.eta=0.8"]


@pytest.mark.parametrize("kernel", ["flow_sde", "cps"])
def test_outside_the_window_a_step_is_the_odes(kernel: str) -> None:
    schedule = make_schedule(6)
    plain = Sampler(schedule, KERNELS[kernel], 0.7)
    found = Windowed(schedule, KERNELS[kernel], 0.7, noisy=(1, 2)).coefficients
    for k, at in enumerate(found):
        assert at == (plain.coefficients[k] if k in (1, 2) else ode(schedule, k, 0.0))
    field = lambda x, sigma: 0.5 * x + sigma
    x = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    draws = lambda sampler: rollout(field, x, sampler, torch.Generator().manual_seed(1)).final
    no_noise = Windowed(schedule, KERNELS[kernel], 0.7, noisy=())
    assert torch.equal(draws(no_noise), draws(Sampler(schedule, KERNELS["ode"])))


def places(lab, options: WindowOptions, steps: int) -> list[int]:
    """First noisy step in each of several updates."""
    candidates = list(range(5))
    found = []
    for lab.step in range(steps):
        noisy = [k for k, at in enumerate(windowed(lab, "ocr", options, candidates).coefficients) if at.c]
        assert noisy == list(range(noisy[0], noisy[0] + options.size))
        found.append(noisy[0])
    return found


def test_a_sliding_window_moves_on_and_starts_again(make_lab) -> None:
    lab = make_lab("cps", 0.8)
    options = WindowOptions(size=3, place="slide", every=2)
    assert places(lab, options, 8) == [0, 0, 1, 1, 2, 2, 0, 0]


def test_a_random_window_is_everywhere_and_the_same_when_resumed(make_lab) -> None:
    lab = make_lab("cps", 0.8)
    options = WindowOptions(size=2)
    first = places(lab, options, 60)
    assert set(first) == {0, 1, 2, 3}
    assert places(lab, options, 60) == first
    lab.seed = 1
    assert places(lab, options, 60) != first


def test_a_window_stays_within_its_bounds(make_lab) -> None:
    lab = make_lab("cps", 0.8)
    assert set(places(lab, WindowOptions(size=1, first=1, last=3), 60)) == {1, 2, 3}
    assert places(lab, WindowOptions(size=2, place="slide", every=1, first=2), 3) == [2, 3, 2]
    with pytest.raises(UsageError, match="size 3 is more than the 2 steps that can be trained"):
        check_window("grpo", WindowOptions(size=3, first=1, last=2), list(range(5)))
    with pytest.raises(UsageError, match="has no effect at size 0"):
        check_window("grpo", WindowOptions(first=1), list(range(5)))


def test_only_the_window_is_trained(make_lab, gradient) -> None:
    """The loss with a window is that of its steps: written down again from the trajectory."""
    lab = make_lab("cps", 0.8)
    lab.step = 3
    method = MultiReward(MultiRewardOptions(engine="grpo", groups=2, group_size=3, grpo={"kl": 0, "window": {"size": 2}}))
    with torch.no_grad():
        samples = method.mix(lab, {"ocr": method.collect(lab, "ocr")})["ocr"]
    noisy = [k for k, density in enumerate(samples.trajectory.log_probs) if density is not None]
    assert len(noisy) == 2
    shake(lab.backbone, STUDENT, 0.01)
    found = float(sum(piece.detach() for piece in method.losses(lab, "ocr", samples)))
    expected = []
    for k in noisy:
        at, x = lab.sampler.coefficients[k], samples.trajectory.states[k]
        with torch.no_grad():
            new = at.a * x + at.b * lab.velocity(samples.conditioning, STUDENT)(x, lab.sampler.schedule.sigmas[k])
        old = at.a * x + at.b * samples.trajectory.velocities[k]
        drawn = samples.trajectory.states[k + 1]
        gap = ((drawn - old) ** 2 - (drawn - new) ** 2).mean((1, 2, 3)) / (2 * at.c**2)
        ratio = gap.exp()
        a = samples.advantages
        expected.append(torch.maximum(-a * ratio, -a * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean())
    assert found == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4, abs=1e-6)


def test_flow_dppo_drops_what_is_far_and_would_go_further() -> None:
    log_ratio = torch.tensor([0.2, 0.2, -0.2, -0.2, 0.2, -0.2, 0.2]).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 0.0])
    kl = torch.tensor([2e-5, 2e-5, 2e-5, 2e-5, 5e-6, 5e-6, 2e-5])
    engine = FlowDppo(FlowDppoOptions())
    sampler = Sampler(make_schedule(4), KERNELS["cps"], 0.8)
    loss = engine.policy(log_ratio, advantage, kl, sampler, 0)
    dropped = np.array([True, False, False, True, False, False, False])
    expected = np.where(dropped, 0, -advantage.numpy() * np.exp([0.2, 0.2, -0.2, -0.2, 0.2, -0.2, 0.2]))
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-6)
    loss.sum().backward()
    assert (log_ratio.grad != 0).tolist() == [False, True, True, False, True, True, False]
    assert engine.outside(log_ratio, advantage, kl).tolist() == dropped.tolist()


def test_flow_dppo_counts_what_it_drops(make_lab) -> None:
    lab = make_lab("cps", 0.8)
    settings = {"max_kl": 1e-12, "inner_updates": 1, "window": {"size": 2}, "timestep_fraction": 0.9}
    method = MultiReward(MultiRewardOptions(engine="flow_dppo", groups=2, group_size=3, flow_dppo=settings))
    with torch.no_grad():
        samples = method.mix(lab, {"ocr": method.collect(lab, "ocr")})["ocr"]
        list(method.losses(lab, "ocr", samples))
        assert lab.notes["clipped/ocr"] == 0 == lab.notes["kl_old/ocr"]
        shake(lab.backbone, STUDENT, 0.01)
        list(method.losses(lab, "ocr", samples))
    assert 0 < lab.notes["clipped/ocr"] < 1
    assert lab.notes["kl_old/ocr"] > 1e-12


def test_tempflow_branches_at_one_step(make_lab) -> None:
    lab = make_lab("cps", 0.8)
    method = MultiReward(MultiRewardOptions(engine="tempflow", groups=2, group_size=3))
    with torch.no_grad():
        trajectory = method.collect(lab, "ocr").trajectory
    (branch,) = [k for k, density in enumerate(trajectory.log_probs) if density is not None]
    for k, state in enumerate(trajectory.states):
        for group in (state[:3], state[3:]):
            apart = float((group - group[:1]).abs().max())
            assert apart > 1e-2 if k > branch else apart < 1e-5
    assert (trajectory.states[0][0] - trajectory.states[0][3]).abs().max() > 1e-2


def test_tempflow_weights_steps_by_their_noise_with_mean_one() -> None:
    sampler = Sampler(make_schedule(6), KERNELS["flow_sde"], 0.7)
    engine, plain = TempFlow(TempFlowOptions()), Grpo(GrpoOptions())
    log_ratio, advantage, kl = torch.tensor([1e-5]), torch.tensor([-1.0]), torch.zeros(1)
    steps = engine.trained(sampler)
    weights = [
        float(engine.policy(log_ratio, advantage, kl, sampler, k) / plain.policy(log_ratio, advantage, kl, sampler, k))
        for k in steps
    ]
    assert np.mean(weights) == pytest.approx(1, rel=1e-5)
    stds = [sampler.coefficients[k].c for k in steps]
    np.testing.assert_allclose(weights, np.array(stds) / np.mean(stds), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["params.engine=grpo", "params.grpo.window.size=10"], "more than the 9 steps"),
        (["params.engine=grpo", "params.grpo.window.place=slide"], "no effect at size 0"),
        (["params.engine=grpo", "params.grpo.window.size=2", "params.grpo.window.every=3"], "place=slide"),
        (["params.engine=tempflow", "params.tempflow.window.size=2"], "must be 1"),
        (["params.engine=flow_dppo", "params.groups=3"], "not divisible by params.flow_dppo.inner_updates 2"),
    ],
)
def test_windows_that_cannot_be_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve("multi_reward", ["ocr"], overrides=[*NOISY, *settings])


def test_a_part_of_a_window_completes_the_engines_own() -> None:
    """flow_dppo's window has size 3, tempflow's size 1, and the type's default is 0."""
    plain = resolve("single_task", ["ocr"], overrides=["params.engine=flow_dppo"])
    said = resolve("single_task", ["ocr"], overrides=["params.engine=flow_dppo", "params.flow_dppo.window.place=random"])
    assert said.params["flow_dppo"]["window"]["size"] == 3
    assert said.digest("f") == plain.digest("f")
    moved = resolve("single_task", ["ocr"], overrides=["params.engine=tempflow", "params.tempflow.window.place=slide"])
    assert moved.params["tempflow"]["window"] == {
        "size": 1, "place": "slide", "every": 25, "first": 0, "last": None,
    }  # fmt: skip
