"""Self-OPD against its formulas, by hand and written out, and what it costs."""

import numpy as np
import pytest
import torch

from bench.api.lab import STUDENT
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.sampler.gaussian import Transition
from bench.sampler.rollout import rollout
from methods.branching import branch_weights
from methods.self_opd import SelfOpd, SelfOpdOptions, cycle, steps_of
from tests.methods.conftest import TASKS


def test_weights_by_hand() -> None:
    """Rewards 1, 0, .5 against .25: std .5, advantages 1.5, -.5, .5. The worse branch has cosine -.6 to the best."""
    z = torch.tensor([[1.0, 0.0], [-0.6, 0.8], [0.0, 2.0]], dtype=torch.float64).view(1, 3, 1, 1, 2)
    rewards = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64)
    found = branch_weights(rewards, torch.tensor([0.25], dtype=torch.float64), z, 1.0)
    assert found[0].tolist() == pytest.approx([1.0, -0.5 * 0.8, 0.5])  # the first is clipped
    assert branch_weights(rewards, torch.tensor([0.25], dtype=torch.float64), z, 9.0)[0, 0] == pytest.approx(1.5)


def test_equal_rewards_divide_by_the_least_deviation() -> None:
    z = torch.eye(2, dtype=torch.float64).view(1, 2, 1, 1, 2)
    rewards = torch.full((1, 2), 0.5, dtype=torch.float64)
    same = torch.tensor([0.5], dtype=torch.float64)
    assert branch_weights(rewards, same, z, 1.0).tolist() == [[0, 0]]
    found = branch_weights(rewards, same - 1e-5, z, 1.0)
    assert found[0].tolist() == pytest.approx([0.1, 0.1])


def test_a_branch_against_the_best_s_direction_is_not_repelled_as_well_as_attracted() -> None:
    """A worse branch that points the same way as the best has no weight; one that points away has all of its own."""
    z = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64).view(1, 3, 1, 1, 1)
    rewards = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    found = branch_weights(rewards, torch.tensor([0.1], dtype=torch.float64), z, 9.0)[0]
    assert found[1] == 0
    assert found[2] == pytest.approx(-0.1 / float(rewards.std()))


def test_early_steps_come_more_often() -> None:
    turns = cycle([0, 1, 2, 3])
    assert sorted(turns) == [0, 0, 0, 1, 1, 2]
    seen = [k for update in range(6) for k in steps_of(turns, update, 2)]
    assert sorted(seen) == sorted(2 * turns)


def test_the_last_step_has_no_turn_as_in_the_released_weights() -> None:
    """Nine trained steps: the authors' weights are 10, 9, 8, 7, 6, 4, 2, 1, 0; an only step is trained."""
    turns = cycle(list(range(9)))
    assert [turns.count(k) for k in range(9)] == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert cycle([3]) == [3]


def method(**options) -> SelfOpd:
    return SelfOpd(SelfOpdOptions(trajectories=3, branches=4, **options))


def scored(lab) -> list[torch.Tensor]:
    """Replace the scorers by the mean of each image's latent, through a sigmoid; returns what is scored."""
    seen: list[torch.Tensor] = []

    class Found:
        def __init__(self, latents):
            self.rewards = latents.flatten(1).mean(1).sigmoid().double().numpy()

    def score_later(task, latents, prompts):
        assert len(latents) == len(prompts)
        seen.append(latents)
        return lambda: Found(latents)

    lab.score_later = score_later
    return seen


def test_the_loss_written_out(make_lab, gradient) -> None:
    """Every branch completed by its own Euler loop; the weights per state with numpy; the loss from log-densities."""
    lab = make_lab("cps", 0.8, 2.0, steps=4)
    seen = scored(lab)
    opd = method(steps=1)
    with torch.no_grad():
        experience = opd.collect(lab, "ocr")
    (at,) = experience.branches
    k, sigmas = at.step, lab.sampler.schedule.sigmas
    student, losses = lab.velocity(experience.conditioning, STUDENT), []
    noise = lab.backbone.noise(3, lab.generator("noise", "ocr"))
    x = rollout(student, noise, lab.sampler, lab.generator("kernel", "ocr"), keep=True).states[k]
    torch.testing.assert_close(at.x, x)
    with torch.no_grad():
        v = student(x, sigmas[k])
        starts = [*at.drawn.unbind(1), x + (sigmas[k + 1] - sigmas[k]) * v]
        finals = []
        for y in starts:
            for j in range(k + 1, 4):
                y = y + (sigmas[j + 1] - sigmas[j]) * student(y, sigmas[j])
            finals.append(y)
        rewards = torch.stack([y.flatten(1).mean(1).sigmoid() for y in finals], 1).double().numpy()
    assert len(seen[0]) == 3 * 5
    new = Transition(x, student(x, sigmas[k]), lab.sampler.coefficients[k])
    constant = new.log_prob(new.mean)
    for i in range(3):
        z = (at.drawn[i] - new.mean[i].detach()).flatten(1).double().numpy()
        advantages = (rewards[i, :4] - rewards[i, 4]) / max(rewards[i, :4].std(ddof=1), 1e-4)
        best = z[advantages.argmax()]
        for b in range(4):
            cosine = z[b] @ best / np.linalg.norm(z[b]) / np.linalg.norm(best)
            weight = np.clip(advantages[b] * (1 if advantages[b] >= 0 else (1 - cosine) / 2), -1, 1)
            distance = (constant - new.log_prob(at.drawn[:, b]))[i] / x[0].numel()
            losses.append(float(weight) * distance)
    expected = sum(losses) / 12
    wanted = torch.autograd.grad(expected, lab.backbone.adapters.parameters(STUDENT), allow_unused=True)
    loss, found = gradient(lab, opd, "ocr")
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    flat = torch.cat([g.flatten() for g in wanted])
    assert (found - flat).norm() < 1e-3 * flat.norm()
    _, chunked = gradient(lab, method(steps=1, chunk=2), "ocr")
    assert (chunked - found).norm() < 1e-4 * found.norm()


def test_a_step_along_the_gradient_raises_the_reward(make_lab, gradient) -> None:
    lab = make_lab("cps", 0.8, 1.0, steps=3)
    scored(lab)
    opd = SelfOpd(SelfOpdOptions(trajectories=8, branches=8, steps=2))
    _, before = gradient(lab, opd, "ocr")
    reward = lab.notes["reward/ocr"]
    with torch.no_grad():
        offset = 0
        for p in lab.backbone.adapters.parameters(STUDENT):
            p.sub_(0.05 * (before / before.norm())[offset : offset + p.numel()].view_as(p))
            offset += p.numel()
    gradient(lab, opd, "ocr")
    assert lab.notes["reward/ocr"] > reward
    assert lab.notes["reward_best/ocr"] > lab.notes["reward/ocr"]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_cost_of_a_cycle_is_as_predicted(make_lab, gradient, guidance: float) -> None:
    """5 steps, 4 of them with noise: turns 0 0 0 1 1 2, with 4, 3 or 2 steps left after them."""
    overrides = ["sampler.kernel=cps", "sampler.eta=0.8", "sampler.steps=5", f"sampler.guidance={guidance}"]
    spec = resolve("self_opd", list(TASKS), overrides=[*overrides, "params.trajectories=3", "params.branches=4"])
    lab = make_lab("cps", 0.8, guidance, steps=5)
    scored(lab)
    method = SelfOpd(SelfOpdOptions.model_validate(spec.params))
    meter = lab.backbone.meter
    meter.nfe.clear()
    for lab.step in range(6):
        for task in TASKS:
            gradient(lab, method, task)
    assert sum(meter.nfe.values()) / 6 <= SelfOpd.predict(spec, lab.sampler) < sum(meter.nfe.values()) / 6 + 1


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a stochastic kernel"):
        resolve("self_opd", ["ocr"], overrides=["sampler.kernel=ode", "sampler.eta=0"])
    noisy = ["sampler.kernel=cps", "sampler.eta=0.8"]
    with pytest.raises(UsageError, match="trains no step"):
        resolve("self_opd", ["ocr"], overrides=[*noisy, "params.timestep_fraction=0.01"])
