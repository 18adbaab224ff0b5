"""Distillation with a reward: what the gradient is made of, and what is refused."""

import pytest
import torch

from bench.config.resolve import resolve
from bench.errors import UsageError
from methods.multi_reward import MultiReward, MultiRewardOptions
from methods.opd_analytic import OpdAnalytic, OpdOptions, Start
from methods.opd_reward import OpdReward

OPTIONS = {"engine": "grpo", "groups": 2, "group_size": 2}


def flat(lab, pieces) -> torch.Tensor:
    parameters = lab.backbone.adapters.parameters("student")
    total = [torch.zeros_like(p) for p in parameters]
    for piece in pieces:
        found = torch.autograd.grad(piece, parameters)
        total = [a + b for a, b in zip(total, found)]
    return torch.cat([t.flatten() for t in total])


def test_the_gradient_is_the_reward_s_plus_that_of_analytic_opd(make_lab) -> None:
    lab = make_lab("flow_sde", 0.7, 1.0, steps=3)
    weighted = {"kl": 0.5, "timestep_fraction": 1.0}
    both = OpdReward(MultiRewardOptions(**OPTIONS, grpo=weighted))
    alone = MultiReward(MultiRewardOptions(**OPTIONS, grpo=weighted | {"kl": 0.0}))
    with torch.no_grad():
        samples = both.mix(lab, {"ocr": both.collect(lab, "ocr")})["ocr"]
        samples.advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
        states, sigmas = samples.trajectory.states[:3], lab.sampler.schedule.sigmas
        teacher = lab.teacher("ocr", samples.conditioning)
        targets = [(teacher(x, sigma),) for x, sigma in zip(states, sigmas)]
    found = flat(lab, both.losses(lab, "ocr", samples))
    reward = flat(lab, alone.losses(lab, "ocr", samples))
    opd = OpdAnalytic(OpdOptions(trajectories=4, execution="plain", weighting="no_dt", timestep_fraction=1.0))
    distilled = flat(lab, opd.losses(lab, "ocr", Start(states[0], samples.conditioning, states, targets)))
    assert reward.norm() > 0 and distilled.norm() > 0
    assert (found - reward - 0.5 * distilled).norm() < 1e-4 * found.norm()


def test_what_is_no_distillation_is_refused() -> None:
    noisy = ["sampler.kernel=cps", "sampler.eta=0.8", "params.engine=grpo"]
    with pytest.raises(UsageError, match=r"params\.grpo\.kl is the weight of the distillation"):
        resolve("opd_reward", ["ocr"], overrides=[*noisy, "params.grpo.kl=0"])
    with pytest.raises(UsageError, match=r"set teacher_guidance\.ocr"):
        resolve("opd_reward", ["ocr"], overrides=["sampler.guidance=2", "teacher_guidance.ocr=1"])
    with pytest.raises(UsageError, match=r"params\.engine crd uses its reference for more"):
        resolve("opd_reward", ["ocr"], overrides=["params.engine=crd"])
