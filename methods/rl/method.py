"""The part that single-task, joint and cascaded RL share: an engine, prompt groups, rewards, advantages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from bench.api.lab import Lab
from bench.api.method import Method, Needs, Options, Work
from bench.config.bounds import Count
from bench.errors import UsageError
from bench.lazy import torch
from methods.distillation import branches
from methods.rl.advantages import Mixing, advantages
from methods.rl.engine import Engine, Samples
from methods.rl.grpo import Grpo, GrpoOptions
from methods.rl.grpo_guard import GrpoGuard, GrpoGuardOptions
from methods.rl.nft import Nft, NftOptions

if TYPE_CHECKING:
    from torch import Tensor

MOST_PICTURES = 1_000_000
ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (Nft, Grpo, GrpoGuard)}


class RlOptions(Options):
    """Settings of every RL method. Only the chosen engine's section matters."""

    engine: Literal["nft", "grpo", "grpo_guard"] = "nft"
    groups: Count = 48
    """Prompts per task and update."""
    group_size: Annotated[int, Field(gt=1, le=100_000)] = 24
    """Pictures per prompt."""
    mixing: Mixing = "per_reward"
    """How advantages of several tasks compare: each task in units of its own deviation, or all in common units."""
    global_std: bool = True
    """The deviation is the task's over the batch, not each prompt group's."""
    nft: NftOptions = NftOptions()
    grpo: GrpoOptions = GrpoOptions()
    grpo_guard: GrpoGuardOptions = GrpoGuardOptions()

    @property
    def idle(self) -> dict[str, str]:
        """The sections of the engines that are not chosen."""
        return {name: f"params.engine is {self.engine}" for name in ENGINES if name != self.engine}

    def build(self) -> Engine:
        """The chosen engine with its section of settings."""
        return ENGINES[self.engine](getattr(self, self.engine))


class RlMethod(Method[Samples]):
    """Joint RL on whatever tasks the plan names; subclasses change the plan."""

    needs = Needs(rewards=True)
    Options = RlOptions
    lowers_memory = (*(f"{name}.chunk" for name in ENGINES), "groups")
    reference: str | None = None
    """Adapter that the engines' penalty pulls towards; None is the base."""

    def __init__(self, options: RlOptions):
        super().__init__(options)
        self.engine = options.build()
        self.adapters = self.engine.adapters

    @classmethod
    def check(cls, spec, sampler) -> None:
        super().check(spec, sampler)
        options = cls.Options.model_validate(spec.params)
        if options.groups * options.group_size > MOST_PICTURES:
            raise UsageError(
                f"params.groups {options.groups} times params.group_size {options.group_size} is more than "
                f"{MOST_PICTURES:,} pictures a task and update"
            )
        options.build().check(sampler, options.groups)
        if options.mixing != "per_reward" and not options.global_std:
            raise UsageError(
                f"params.mixing {options.mixing} divides all tasks by one deviation: it needs params.global_std true"
            )

    @classmethod
    def predict(cls, spec, sampler) -> int:
        return cls.work(spec, sampler).passes.nfe

    @classmethod
    def work(cls, spec, sampler) -> Work:
        options = cls.Options.model_validate(spec.params)
        engine, drawn = options.build(), options.groups * options.group_size
        pictures = cls.tasks_per_update(spec) * drawn
        trained = drawn // getattr(engine.options, "inner_updates", 1)
        return Work(
            engine.passes(sampler) * branches(spec.sampler.guidance) * pictures,
            drawn=drawn,
            trained_at_once=min(trained, engine.options.chunk),
            kept=engine.kept(sampler) * pictures,
            prompts=pictures,
            pictures=pictures,
            pictures_at_once=drawn,
        )

    @classmethod
    def tasks_per_update(cls, spec) -> int:
        return len(spec.tasks)

    @property
    def inner_updates(self) -> int:
        return getattr(self.engine.options, "inner_updates", 1)

    def collect(self, lab: Lab, task: str) -> Samples:
        o = self.options
        prompts = [p for p in lab.prompts(task, o.groups) for _ in range(o.group_size)]
        conditioning = lab.encode(prompts)
        trajectory = self.engine.sample(lab, task, conditioning)
        rewards = lab.score(task, trajectory.final, prompts).rewards.reshape(-1, o.group_size)
        lab.note(f"reward/{task}", float(rewards.mean()))
        lab.note(f"reward_std/{task}", float(rewards.std(1).mean()))
        return Samples(trajectory, conditioning, rewards, torch.empty(0))

    def mix(self, lab: Lab, experiences: dict[str, Samples]) -> dict[str, Samples]:
        """Turn rewards into advantages, once every task's, of all processes, are known."""
        shares = lab.workers.gather({task: samples.rewards for task, samples in experiences.items()})
        rewards = {task: np.concatenate([share[task] for share in shares]) for task in experiences}
        for task, values in advantages(rewards, self.options.mixing, self.options.global_std).items():
            before = sum(len(share[task]) for share in shares[: lab.workers.index])
            mine = values[before : before + len(experiences[task].rewards)].reshape(-1)
            device = experiences[task].trajectory.final.device
            experiences[task].advantages = torch.as_tensor(mine, dtype=torch.float32, device=device)
        return experiences

    def losses(self, lab: Lab, task: str, experience: Samples) -> Iterator[Tensor]:
        yield from self.engine.losses(lab, task, experience, self.reference)

    def after_update(self, lab: Lab) -> None:
        self.engine.after_update(lab)
