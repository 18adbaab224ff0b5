"""Engines on the forward process: their losses against formulas written down again, and their shared loop."""

import numpy as np
import pytest
import torch

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.cli.list import print_list
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.sampler.levels import FlowLevels
from bench.sampler.rollout import Trajectory
from methods.multi_reward import MultiReward, MultiRewardOptions
from methods.rl.awm import Awm, AwmOptions
from methods.rl.crd import SAMPLING, Crd, CrdOptions
from methods.rl.dgpo import Dgpo, DgpoOptions, group_weights
from methods.rl.dpo import Dpo, DpoOptions, best_and_worst
from methods.rl.engine import Batch, Samples
from methods.rl.forward_process import OLD
from methods.rl.method import ENGINES, RlOptions
from methods.rl.renoised import Renoised
from tests.methods.conftest import shake

FORWARD = ("nft", "awm", "dgpo", "crd", "dpo")
ADVANTAGES = [1.5, -0.5, -1.0, 0.3, 0.0, -0.3]
GROUP = 3


def renoised(advantages: list[float] = ADVANTAGES, group_size: int = GROUP) -> Renoised:
    """Random float64 images and velocities; the old policy's and the student's are near each other."""
    generator = torch.Generator().manual_seed(3)
    count = len(advantages)
    x0, noise, off, move, base = torch.randn(5, count, 2, 3, 3, generator=generator, dtype=torch.float64)
    sigma = torch.rand(count, generator=generator, dtype=torch.float64)
    v_old = noise - x0 + 0.5 * off
    v = (v_old + 0.02 * move).requires_grad_()
    x_t = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
    advantage = torch.tensor(advantages, dtype=torch.float64)
    return Renoised(x0, noise, x_t, sigma, advantage, v, v_old, v_old + 0.1 * base, group_size)


def errors(at: Renoised) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flow-matching errors of the student, the old policy and the reference, [B] each."""
    target = (at.noise - at.x0).numpy()
    every = (at.v.detach().numpy(), at.v_old.numpy(), at.v_reference.numpy())
    student, old, reference = (((v - target) ** 2).mean((1, 2, 3)) for v in every)
    return student, old, reference


def test_awm_is_ppo_on_a_generalised_huber_loss() -> None:
    at, o = renoised(), AwmOptions(clip=0.002, advantage_clip=1.0, kl_old=0.7)
    student, old, _ = errors(at)
    new, before = (-((e + 1e-10) ** 0.25 - (1e-10) ** 0.25) * at.sigma.numpy() / 0.25 for e in (student, old))
    ratio = np.exp(new - before)
    assert np.abs(ratio - 1).min() < 0.002 < np.abs(ratio - 1).max()  # some are clipped
    a = np.clip(ADVANTAGES, -1, 1)
    expected = np.maximum(-a * ratio, -a * np.clip(ratio, 0.998, 1.002))
    expected += 0.7 * ((at.v - at.v_old) ** 2).mean((1, 2, 3)).detach().numpy()
    np.testing.assert_allclose(Awm(o).policy_loss(at).detach().numpy(), expected, atol=1e-6)


def test_dgpo_weights_groups_and_stops_at_the_clip_range() -> None:
    at, o = renoised(), DgpoOptions(beta=30.0, clip=0.002, advantage_clip=1.0)
    student, old, reference = errors(at)
    a = np.clip(ADVANTAGES, -1, 1)
    terms = (a * 30.0 * (student - reference) / GROUP).reshape(-1, GROUP).sum(1)
    weights = (1 / (1 + np.exp(-terms))).repeat(GROUP)
    loss = Dgpo(o).policy_loss(at)
    np.testing.assert_allclose(loss.detach().numpy(), weights * a * student, rtol=1e-9)
    loss.sum().backward()
    ratio = np.exp(old - student)
    stopped = np.where(a > 0, ratio > 1.002, ratio < 0.998)
    moved = at.v.grad.flatten(1).norm(dim=1).numpy() > 0
    np.testing.assert_array_equal(moved, ~stopped & (a != 0))
    assert stopped.any()


def test_dgpo_weight_falls_as_the_student_comes_to_prefer_the_better_images() -> None:
    advantages = torch.tensor([1.0, -1.0])
    before, after = (group_weights(torch.tensor(gain), advantages, 10.0, 2) for gain in ([0.0, 0.0], [-0.2, 0.2]))
    torch.testing.assert_close(before, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(after, torch.sigmoid(torch.tensor([-2.0, -2.0])))


def test_crd_regresses_centred_rewards() -> None:
    at, o = renoised(), CrdOptions(beta=0.7, advantage_clip=2.0, kl=0.1)
    target = (at.noise - at.x0).numpy()

    def weighed(v: np.ndarray) -> np.ndarray:
        return ((v - target) ** 2).mean((1, 2, 3)) / np.abs(v - target).mean((1, 2, 3))

    implied = weighed(at.v_old.numpy()) - weighed(at.v.detach().numpy())
    reward = np.array(ADVANTAGES) / 2.0 / 2 + 0.5
    centre = lambda x: x - x.reshape(-1, GROUP).mean(1).repeat(GROUP)
    expected = (0.7 * centre(implied) - centre(reward)) ** 2 * 2.0 / 0.7
    np.testing.assert_allclose(Crd(o).policy_loss(at).detach().numpy(), expected, rtol=1e-4)
    gap = ((at.v.detach() - at.v_reference) ** 2).mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(Crd(o).penalty(at).detach().numpy(), (1e-3 + reward * 0.999) * gap, rtol=1e-6)


def test_crd_moves_better_images_towards_their_target() -> None:
    at = renoised()
    Crd(CrdOptions()).policy_loss(at).sum().backward()
    towards = (at.v.grad * (at.noise - at.x0 - at.v_old)).flatten(1).sum(1)
    assert towards[0] < 0  # the best of its group
    assert towards[2] > 0  # the worst


def test_dpo_is_logistic_in_the_difference_of_gains() -> None:
    at = renoised([1.0, -1.0, 0.5, 0.5, 2.0, -2.0], 2)
    student, old, _ = errors(at)
    gain = (student - old).reshape(-1, 2)
    expected = np.log1p(np.exp(0.5 * 20.0 * (gain[:, 0] - gain[:, 1])))
    expected[1] = 0  # no image of the second pair is better
    found = Dpo(DpoOptions(beta=20.0)).policy_loss(at)
    np.testing.assert_allclose(found.detach().numpy(), expected.repeat(2), rtol=1e-9)


def test_dpo_takes_the_best_and_the_worst_of_each_group(make_lab) -> None:
    conditioning = make_lab().backbone.encode(["a red circle"] * 6)
    samples = Samples(Trajectory(torch.arange(6.0).view(6, 1, 1, 1)), conditioning, 3, lambda: None)
    samples.advantages = torch.tensor([0.1, 0.9, -1.0, -0.2, 0.2, 0.0])
    pairs = best_and_worst(samples)
    assert pairs.trajectory.final.flatten().tolist() == [1, 2, 4, 3]
    assert pairs.group_size == 2
    torch.testing.assert_close(pairs.advantages, torch.tensor([0.9, -1.0, 0.2, -0.2]))


def test_dpo_replaces_its_reference_every_so_often() -> None:
    engine = Dpo(DpoOptions(refresh=4, inner_updates=2))
    assert [engine.decay(updates) for updates in (2, 4, 6, 8)] == [1, 0, 1, 0]
    uneven = Dpo(DpoOptions(refresh=3, inner_updates=2))
    assert [uneven.decay(updates) for updates in (2, 4, 6, 8)] == [1, 0, 0, 1]


def forward_method(engine: str, **settings) -> MultiReward:
    return MultiReward(MultiRewardOptions(engine=engine, groups=2, group_size=4, **{engine: {"timesteps": 2} | settings}))


def prepared(lab, engine: str) -> None:
    for name in ENGINES[engine].adapters:
        lab.backbone.adapters.add(name, Shape(4, 8.0))
        shake(lab.backbone, name, 0.02)


@pytest.mark.parametrize("engine", FORWARD)
def test_chunks_change_nothing_and_two_inner_updates_share_the_images(make_lab, gradient, engine: str) -> None:
    lab = make_lab()
    prepared(lab, engine)
    loss, whole = gradient(lab, forward_method(engine), "ocr")
    again, chunked = gradient(lab, forward_method(engine, chunk=5), "ocr")
    assert again == pytest.approx(loss, rel=1e-4)
    assert (chunked - whole).norm() < 1e-4 * whole.norm()
    halves = []
    for lab.inner in range(2):
        halves.append(gradient(lab, forward_method(engine, inner_updates=2), "ocr")[1])
    assert (sum(halves) / 2 - whole).norm() < 1e-4 * whole.norm()


@pytest.mark.parametrize("engine", ["awm", "dgpo"])
def test_likelihood_ratios_are_logged(make_lab, gradient, engine: str) -> None:
    lab = make_lab()
    prepared(lab, engine)
    gradient(lab, forward_method(engine), "ocr")
    assert lab.notes["ratio/ocr"] == pytest.approx(1, abs=0.2)
    assert lab.notes["ratio/ocr"] != 1
    assert 0 <= lab.notes["clipped/ocr"] <= 1
    assert lab.notes["kl_old/ocr"] > 0
    for name in ENGINES[engine].adapters:  # the old policy is the student
        for old, student in zip(*(lab.backbone.adapters.parameters(n) for n in (name, STUDENT))):
            old.data.copy_(student)
    gradient(lab, forward_method(engine), "ocr")
    assert lab.notes["ratio/ocr"] == pytest.approx(1, abs=1e-6)
    assert lab.notes["clipped/ocr"] == 0
    assert lab.notes["kl_old/ocr"] == 0


def test_crd_samples_with_a_policy_of_its_own(make_lab) -> None:
    lab = make_lab()
    prepared(lab, "crd")
    adapters = lab.backbone.adapters
    lab.step = 9
    before = {name: [p.clone() for p in adapters.parameters(name)] for name in (OLD, SAMPLING)}
    Crd(CrdOptions(old_decay="long", sampling_decay="slow", inner_updates=2)).after_update(lab)
    for name, decay in ((OLD, 0.25 + 0.005 * 20), (SAMPLING, 0.001 * 20)):
        for then, now, student in zip(before[name], adapters.parameters(name), adapters.parameters(STUDENT)):
            torch.testing.assert_close(now, decay * then + (1 - decay) * student)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["params.engine=dgpo", "params.dgpo.chunk=7"], "params.dgpo.chunk 7 is below the 8 images"),
        (["params.engine=dpo", "params.dpo.chunk=1"], "params.dpo.chunk 1 is below the 2 images"),
        (["params.engine=awm", "params.awm.timestep_fraction=0.05"], "trains no noise level"),
        (["params.nft.inner_updates=3"], "not divisible by params.nft.inner_updates 3"),
    ],
)
def test_what_an_engine_cannot_train_with_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve("multi_reward", ["ocr"], overrides=["params.groups=4", "params.group_size=8", *settings])


def test_every_engine_has_a_section_and_names_itself_only_where_chosen() -> None:
    assert set(ENGINES) <= set(RlOptions.model_fields)
    plain = resolve("multi_reward", ["ocr"]).record()["params"]
    assert {"nft", "grpo", "grpo_guard"} <= set(plain)
    assert not set(plain) & (set(ENGINES) - {"nft", "grpo", "grpo_guard"})  # or older runs would have other names
    assert "inner_updates" not in plain["nft"]
    with pytest.raises(UsageError, match=r"params\.engine"):
        resolve("multi_reward", ["ocr"], overrides=["params.engine=ppo"])


def test_the_list_of_methods_names_every_engines_source(capsys) -> None:
    print_list("methods")
    listed = capsys.readouterr().out
    for name, engine in ENGINES.items():
        assert f"params.engine={name} " in listed and engine.source in listed
    assert "params.grpo.window.place=slide " in listed


def test_dpo_trains_two_images_of_each_group() -> None:
    sampler = resolve("multi_reward", ["ocr"]).sampler.build(FlowLevels(3.0))
    passes = Dpo(DpoOptions(timesteps=3)).passes(sampler, Batch(5, 8, 2))
    # With guidance in the rollouts only.
    assert passes.trained == 5 * 2 * 3
    assert passes.forward == 5 * 8 * sampler.steps * 2 + 5 * 2 * 3
