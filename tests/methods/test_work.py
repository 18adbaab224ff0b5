"""What a method says an update does, against an update: passes, budget, largest batches, pictures."""

import math
from pathlib import Path

import pytest
import torch

from bench.api.lab import STUDENT
from bench.backbones.adapters import Shape
from bench.config.resolve import resolve
from bench.registry import find
from bench.sampler.levels import FlowLevels
from bench.scoring.loading import load_tasks
from methods.reward_gradient import RewardGradientMethod
from tests.folders import data, needs_data
from tests.methods.conftest import TASKS, shake

NOISY = ["sampler.kernel=flow_sde", "sampler.eta=0.7"]
FEW = ["sampler.steps=4"]
DISTILLED = [*FEW, "params.trajectories=3"]
DRAWN = [*FEW, "params.groups=2", "params.group_size=3"]
NFT, GRPO, GUARD = (["params.engine=" + engine] for engine in ("nft", "grpo", "grpo_guard"))
UPDATES = {
    "opd_analytic fused": ("opd_analytic", [*DISTILLED, "params.execution=fused"]),
    "opd_analytic fused, chunks": ("opd_analytic", [*DISTILLED, "params.chunk=2", "params.anchor=0.1"]),
    "opd_analytic plain": ("opd_analytic", [*DISTILLED, "params.execution=plain", "params.anchor=0.1"]),
    "opd_analytic plain, chunks": ("opd_analytic", [*DISTILLED, "params.execution=plain", "params.chunk=4"]),
    "opd_analytic alternating": ("opd_analytic", [*DISTILLED, "params.batches=alternate"]),
    "opd_ppo": ("opd_ppo", [*DISTILLED, *NOISY]),
    "opd_ppo, two inner updates": ("opd_ppo", [*DISTILLED, *NOISY, "params.inner_updates=2", "params.anchor=0.1"]),
    "dance_opd": ("dance_opd", [*DISTILLED, "params.anchor=0.1"]),
    "off_policy": ("off_policy", [*DISTILLED, "params.anchor=0.1"]),
    "sft": ("sft", [*DISTILLED, "params.levels=2", "params.anchor=0.1"]),
    "multi_reward nft": ("multi_reward", [*DRAWN, *NFT, "params.nft.timesteps=3", "params.nft.chunk=4"]),
    "multi_reward nft without penalty": ("multi_reward", [*DRAWN, *NFT, "params.nft.kl=0", "params.nft.timesteps=9"]),
    "multi_reward grpo": ("multi_reward", [*DRAWN, *NOISY, *GRPO, "params.grpo.chunk=4"]),
    "multi_reward grpo, two inner updates": (
        "multi_reward", [*DRAWN, *NOISY, *GRPO, "params.grpo.inner_updates=2", "params.grpo.kl=0"]
    ),
    "multi_reward grpo_guard": ("multi_reward", [*DRAWN, *NOISY, *GUARD, "params.grpo_guard.kl=0.1"]),
    "multi_reward grpo, random window": (
        "multi_reward", [*DRAWN, *NOISY, *GRPO, "params.grpo.window.size=2", "params.grpo.chunk=4"]
    ),
    "multi_reward grpo, sliding window": (
        "multi_reward",
        [*DRAWN, *NOISY, *GRPO, "params.grpo.window.size=1", "params.grpo.window.place=slide", "params.grpo.kl=0"],
    ),
    "multi_reward flow_dppo": (
        "multi_reward", [*DRAWN, *NOISY, "params.engine=flow_dppo", "params.flow_dppo.window.size=1"]
    ),
    "multi_reward tempflow": ("multi_reward", [*DRAWN, *NOISY, "params.engine=tempflow", "params.tempflow.kl=0.1"]),
    "multi_reward nft, two inner updates": ("multi_reward", [*DRAWN, *NFT, "params.nft.inner_updates=2"]),
    "multi_reward awm": ("multi_reward", [*DRAWN, "params.engine=awm", "params.awm.timestep_fraction=0.5"]),
    "multi_reward dgpo": ("multi_reward", [*DRAWN, "params.engine=dgpo", "params.dgpo.chunk=5", "params.dgpo.kl=0"]),
    "multi_reward crd": ("multi_reward", [*DRAWN, "params.engine=crd", "params.crd.chunk=3"]),
    "multi_reward dpo": ("multi_reward", [*DRAWN, "params.engine=dpo", "params.dpo.kl=0.1", "params.dpo.chunk=3"]),
    "cascade": ("cascade", [*DRAWN, *NFT]),
    "single_task": ("single_task", [*DRAWN, *NFT]),
    "flow_matching": ("flow_matching", [*FEW, "params.batch=3"]),
    "flow_matching, chunks": ("flow_matching", [*FEW, "params.batch=5", "params.chunk=2"]),
    "offline_dpo": ("offline_dpo", [*FEW, "params.batch=3"]),
    "offline_dpo, chunks": ("offline_dpo", [*FEW, "params.batch=5", "params.chunk=2"]),
    "draft_k": ("draft_k", [*DISTILLED, *NOISY, "params.last=1"]),
    "draft_k, chunks": ("draft_k", [*FEW, "params.trajectories=5", "params.last=3", "params.chunk=2"]),
    "draft_k, all steps": ("draft_k", [*DISTILLED, "params.last=4"]),
    "refl": ("refl", DISTILLED),
    "refl, chunks": ("refl", [*FEW, "params.trajectories=5", "params.late=0.5", "params.chunk=2"]),
    "merge": ("merge", []),
    "opd_analytic, all teachers and beyond": (
        "opd_analytic", [*DISTILLED, "params.execution=plain", "params.teachers=all", "params.extrapolation=0.5"]
    ),
    "opd_reward": ("opd_reward", [*DRAWN, *NFT, "params.nft.timesteps=3"]),
    # One step is trained: with several, the cost of an update depends on whose turn it is.
    "self_opd": (
        "self_opd",
        [*FEW, *NOISY, "params.trajectories=3", "params.branches=4", "params.steps=1", "params.timestep_fraction=0.3"],
    ),
}  # fmt: skip
"""Every method and engine."""
WITH_GRADIENT = ("pickscore",)
"""Tasks whose reward has a gradient."""


class Watched:
    """Sizes of the calls of a backbone; those with gradients are added up until their backward pass."""

    def __init__(self, backbone):
        self.trained, self.drawn, self.decoded = [0], [0], [0]
        forward, decode = backbone._forward, backbone.decode

        def watched_forward(network, x, *rest):
            if torch.is_grad_enabled():
                self.trained[-1] += len(x)
            else:
                self.drawn.append(len(x))
            return forward(network, x, *rest)

        def watched_decode(latents):
            self.decoded.append(len(latents))
            return decode(latents)

        backbone._forward, backbone.decode = watched_forward, watched_decode

    def backward(self, piece: torch.Tensor) -> None:
        piece.backward()
        self.trained.append(0)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_does_what_was_said(make_lab, tmp_path: Path, name: str, guidance: float) -> None:
    method_name, overrides = UPDATES[name]
    cls = find("method", method_name)
    tasks = WITH_GRADIENT if issubclass(cls, RewardGradientMethod) else TASKS if cls.several_tasks else TASKS[:1]
    guided = [f"sampler.guidance={guidance}"]
    if cls.needs.teachers:  # the first task's teacher draws without guidance, as the published one for GenEval
        first = guidance if method_name == "opd_reward" else 1.0  # which needs one scale for all
        guided += [f"teacher_guidance.{tasks[0]}={first}", *(f"teacher_guidance.{t}={guidance}" for t in tasks[1:])]
    teachers = "folder" if cls.needs.teachers else None
    if needs_data(method_name):
        guided += data(tmp_path, tasks)
    spec = resolve(method_name, list(tasks), overrides=[*overrides, *guided], teachers=teachers)
    sampler = spec.sampler.build(FlowLevels(3.0))
    lab = make_lab(spec.sampler.kernel, spec.sampler.eta, guidance, steps=spec.sampler.steps)
    lab.sampler, lab.teacher_guidance = sampler, spec.teacher_guidance
    lab.tasks = load_tasks(tasks, "micro")
    method = cls(cls.Options.model_validate(spec.params))
    for adapter in method.adapters:
        lab.backbone.adapters.add(adapter, Shape(4, 8.0))
        shake(lab.backbone, adapter, 0.02)
    _ = lab.backbone.picture_size  # found once, by decoding a latent
    watched, meter = Watched(lab.backbone), lab.backbone.meter
    meter.nfe.clear()
    turns = len(tasks) if spec.params.get("batches") == "alternate" else 1  # the prediction is their average
    for lab.step in range(turns if cls.trains else 0):
        with torch.no_grad():
            plan = method.plan(lab)
            experiences = method.mix(lab, {task: method.collect(lab, task) for task in plan})
        for lab.inner in range(method.inner_updates):
            for task in plan:
                for piece in method.losses(lab, task, experiences[task]):
                    watched.backward(piece)
    work = cls.work(spec, sampler)
    branches = 2 if guidance != 1 else 1
    assert meter.passes.trained == turns * work.passes.trained
    assert meter.passes.forward <= turns * work.passes.forward < meter.passes.forward + turns * 3 * branches
    assert math.ceil(sum(meter.nfe.values()) / turns) <= cls.predict(spec, sampler)
    if turns == 1:
        assert meter.passes == work.passes
        assert sum(meter.nfe.values()) == cls.predict(spec, sampler)
    assert sum(watched.decoded) == work.pictures
    assert max(watched.decoded) == work.pictures_at_once
    if cls.trains:
        assert max(watched.trained) == work.trained_at_once * (branches if work.guided else 1)
        assert max(watched.drawn) <= work.drawn * branches
        assert lab.backbone.adapters.parameters(STUDENT)[0].grad is not None


def test_every_registered_method_is_here() -> None:
    from bench.registry import registered

    ours = {name for name, point in registered("method").items() if point.value.startswith("methods.")}
    assert {method for method, _ in UPDATES.values()} == ours
