"""Methods that backpropagate the reward: gradients against direct ones, refusals, and that the reward rises."""

import json

import numpy as np
import pytest
import torch

from bench.api.lab import STUDENT
from bench.api.task import Prompt
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.sampler.draws import draw
from bench.scoring.loading import load_task, load_tasks
from bench.training.execute import Session, execute
from methods.draft_k import DraftK, DraftOptions
from methods.refl import Refl, ReflOptions

TASK = "pickscore"


@pytest.fixture
def make(make_lab):
    """make(kernel, eta, guidance, steps) -> a Lab of the one task whose reward has a gradient."""

    def lab_of(*how, **named):
        lab = make_lab(*how, **named)
        lab.tasks = load_tasks((TASK,), "micro")
        return lab

    return lab_of


def student_gradient(lab, loss: torch.Tensor) -> torch.Tensor:
    parameters = lab.backbone.adapters.parameters(STUDENT)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(("last", "chunk"), [(1, 24), (3, 2), (5, 24)])
def test_draft_is_the_gradient_through_the_last_steps(make, gradient, last: int, chunk: int, guidance: float) -> None:
    lab = make(guidance=guidance, steps=5)
    loss, found = gradient(lab, DraftK(DraftOptions(trajectories=4, last=last, chunk=chunk)), TASK)
    prompts = lab.prompts(TASK, 4)
    conditioning, x = lab.encode(prompts), lab.backbone.noise(4, lab.generator("noise", TASK))
    sigmas = lab.sampler.schedule.sigmas
    for k in range(5):
        with torch.set_grad_enabled(k >= 5 - last):
            x = x + (sigmas[k + 1] - sigmas[k]) * lab.backbone.velocity(x, sigmas[k], conditioning, STUDENT, guidance)
    reward = lab.tasks[TASK].differentiable_reward(lab.backbone.decode(x), prompts).mean()
    assert loss == pytest.approx(-reward.item(), abs=1e-5)
    assert lab.notes[f"reward/{TASK}"] == pytest.approx(reward.item(), abs=1e-5)
    expected = student_gradient(lab, -reward)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_a_chunk_changes_neither_noise_nor_gradient(make, gradient) -> None:
    found = {}
    for chunk in (2, 5):
        lab = make("cps", 0.8, steps=4)
        found[chunk] = gradient(lab, DraftK(DraftOptions(trajectories=5, last=2, chunk=chunk)), TASK)[1]
    assert (found[2] - found[5]).norm() < 1e-5 * found[5].norm()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_refl_is_the_gradient_of_the_prediction_at_a_late_state(make, gradient, guidance: float) -> None:
    lab = make(guidance=guidance, steps=8)
    loss, found = gradient(lab, Refl(ReflOptions(trajectories=6, late=0.5, chunk=4)), TASK)
    prompts = lab.prompts(TASK, 6)
    conditioning, sigmas = lab.encode(prompts), lab.sampler.schedule.sigmas
    x, states = lab.backbone.noise(6, lab.generator("noise", TASK)), []
    with torch.no_grad():
        for k in range(8):
            states.append(x)
            x = x + (sigmas[k + 1] - sigmas[k]) * lab.backbone.velocity(x, sigmas[k], conditioning, STUDENT, guidance)
    generator = lab.generator("late", TASK)
    late = 4 + draw(lambda n: torch.randint(4, (n,), generator=generator), 6, generator)
    assert len(set(late.tolist())) > 1
    x, sigma = torch.stack([states[k][i] for i, k in enumerate(late)]), torch.tensor([sigmas[k] for k in late])
    v = lab.backbone.velocity(x, sigma, conditioning, STUDENT, guidance)
    images = lab.backbone.decode(x - sigma[:, None, None, None] * v)
    reward = lab.tasks[TASK].differentiable_reward(images, prompts).mean()
    assert loss == pytest.approx(-reward.item(), abs=1e-5)
    expected = student_gradient(lab, -reward)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_micro_s_preference_reward_is_the_scored_one_with_its_true_gradient() -> None:
    """Equal to `score` inside its bounds; its derivative along a direction is the difference quotient's."""
    task = load_task(TASK, "micro")
    prompts = task.prompts("train")[:4]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 32, 32, generator=generator).requires_grad_()
    rewards = task.differentiable_reward(images, prompts)
    assert np.allclose(rewards.detach().clamp(0, 1).numpy(), task.score(images.detach(), prompts).rewards, atol=1e-5)
    (slope,) = torch.autograd.grad(rewards.sum(), images)
    direction = slope / slope.norm()
    with torch.no_grad():
        ends = [task.differentiable_reward(images + s * direction, prompts).sum().double() for s in (0.02, -0.02)]
    assert float(ends[0] - ends[1]) / 0.04 == pytest.approx(float(slope.norm()), rel=0.02)


def test_a_reward_behind_an_image_processor_is_the_scored_one_with_a_gradient(clip_folder) -> None:
    """The processor of photographs resizes PIL images; the gradient points where the scored reward rises."""
    sources = {"model": str(clip_folder), "processor": str(clip_folder), "batch": "2"}
    task = load_task(TASK, "photo", sources)
    prompts = [Prompt("a b"), Prompt("c"), Prompt("d e")]
    coarse = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(coarse, (48, 64), mode="bilinear").requires_grad_()
    rewards = task.differentiable_reward(images, prompts)
    scored = lambda x: task.scorer.raw(x, [p.text for p in prompts]) / 26
    assert np.allclose(rewards.detach().numpy(), scored(images.detach()), atol=1e-6)
    (slope,) = torch.autograd.grad(rewards.sum(), images)
    with torch.no_grad():
        along = 0.1 * slope.sign()
        rises = scored((images + along).clamp(0, 1)) - scored((images - along).clamp(0, 1))
    assert (rises > 0).all()
    assert slope[..., :4].abs().sum() < slope[..., 28:36].abs().sum()  # the sides are cropped away


@pytest.mark.parametrize("method", ["draft_k", "refl"])
def test_rewards_without_a_gradient_are_refused_before_anything_is_loaded(method: str) -> None:
    assert resolve(method, [TASK]).params["chunk"] == 24
    message = f"method '{method}' backpropagates the reward, but the reward of task 'ocr' has no gradient"
    with pytest.raises(UsageError, match=message):
        resolve(method, [TASK, "ocr"])
    with pytest.raises(UsageError, match="'pickscore' has no gradient"):
        resolve(method, [TASK], overrides=["scorers.pickscore.url=http://localhost:1"])


def test_steps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"params\.last 11 exceeds the 10 steps of the sampler: lower it"):
        resolve("draft_k", [TASK], overrides=["params.last=11", "sampler.steps=10"])
    with pytest.raises(UsageError, match=r"needs a one-step kernel, not 'dpm2': set sampler\.kernel"):
        resolve("draft_k", [TASK], overrides=["sampler.kernel=dpm2"])
    assert resolve("refl", [TASK], overrides=["sampler.kernel=dpm2"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["draft_k", "refl"])
def test_the_reward_rises_in_a_few_updates(tmp_path, few_prompts, method: str) -> None:
    sets = ["budget.updates=12", "optimizer.lr=3e-3", "ema.every=1", "evaluation.steps=1", "evaluation.points=[]"]
    execute(resolve(method, [TASK], overrides=[*sets, "evaluation.split=validation"]), Session(tmp_path / "results"))
    (log,) = (tmp_path / "results").glob("*/metrics.jsonl")
    rewards = [json.loads(line)[f"reward/{TASK}"] for line in log.read_text().splitlines()]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.05
