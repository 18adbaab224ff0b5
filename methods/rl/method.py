"""The shared part of single-task, joint and cascade RL: engine, prompt groups, rewards and advantages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from bench.api.lab import Lab
from bench.api.method import Needs, Options, Work
from bench.config.bounds import Count
from bench.errors import UsageError
from bench.lazy import torch
from methods.counted import CountedMethod
from methods.rl.advantages import Mixing, advantages
from methods.rl.awm import Awm, AwmOptions
from methods.rl.crd import Crd, CrdOptions
from methods.rl.dgpo import Dgpo, DgpoOptions
from methods.rl.dpo import Dpo, DpoOptions
from methods.rl.engine import Batch, Engine, Samples
from methods.rl.flow_dppo import FlowDppo, FlowDppoOptions
from methods.rl.grpo import Grpo, GrpoOptions
from methods.rl.grpo_guard import GrpoGuard, GrpoGuardOptions
from methods.rl.nft import Nft, NftOptions
from methods.rl.reward_sets import SOURCES as SET_SOURCES
from methods.rl.reward_sets import SetRule, check_rule, set_advantages
from methods.rl.tempflow import TempFlow, TempFlowOptions
from methods.rl.windows import SOURCES as WINDOW_SOURCES

if TYPE_CHECKING:
    from torch import Tensor

MOST_PICTURES = 1_000_000
"""Most images per task and update; more is taken for a typing error."""
WEIGHTED = ""
"""Key of a task's reward, which is the weighted sum if it has several, among its scorers' rewards."""
IN_ALL_RECORDS: tuple[type[Engine], ...] = (Nft, Grpo, GrpoGuard)
"""The engines whose sections are in every record."""
LATER: tuple[type[Engine], ...] = (Awm, Dgpo, Crd, Dpo, FlowDppo, TempFlow)
ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in IN_ALL_RECORDS + LATER}
if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[tuple(ENGINES)]


class RlOptions(Options):
    """Settings of every RL method. Only the section of the chosen engine has an effect."""

    unsaid: ClassVar[tuple[str, ...]] = ("reward_set", *(engine.name for engine in LATER))

    engine: EngineName = "nft"
    """RL objective."""
    groups: Count = 48
    """Prompts per task and update."""
    group_size: Annotated[int, Field(gt=1, le=100_000)] = 24
    """Images per prompt."""
    mixing: Mixing = "per_reward"
    """Scale of advantages across tasks: per_reward divides each task by its own standard deviation, pooled and raw
    divide all tasks by a common one (methods/rl/advantages.py)."""
    global_std: bool = True
    """True: the standard deviation is taken over the task's batch; False: over each prompt group."""
    reward_set: SetRule = "sum"
    """How several rewards of an image (rewards.TASK.SCORER) become one advantage: their weighted sum, each in its own
    deviation, GDPO, or Pareto filter (methods/rl/reward_sets.py)."""
    nft: NftOptions = NftOptions()
    grpo: GrpoOptions = GrpoOptions()
    grpo_guard: GrpoGuardOptions = GrpoGuardOptions()
    awm: AwmOptions = AwmOptions()
    dgpo: DgpoOptions = DgpoOptions()
    crd: CrdOptions = CrdOptions()
    dpo: DpoOptions = DpoOptions()
    flow_dppo: FlowDppoOptions = FlowDppoOptions()
    tempflow: TempFlowOptions = TempFlowOptions()

    @property
    def idle(self) -> dict[str, str]:
        """The sections of the other engines and single settings of the chosen one, each with the reason."""
        others = {name: f"params.engine is {self.engine}" for name in ENGINES if name != self.engine}
        return others | {f"{self.engine}.{name}": cause for name, cause in self.build().without_effect().items()}

    def batch(self, passes: int) -> Batch:
        """What one update samples for one task, with so many passes per velocity of the student."""
        return Batch(self.groups, self.group_size, passes)

    def build(self) -> Engine:
        """The chosen engine with its section of settings."""
        return ENGINES[self.engine](getattr(self, self.engine))


class RlMethod(CountedMethod[Samples]):
    """RL with one engine on the tasks in the plan; subclasses change the plan."""

    needs = Needs(rewards=True)
    Options = RlOptions
    variants: ClassVar[dict[str, str]] = {
        **{f"params.engine={name}": engine.source for name, engine in ENGINES.items()},
        **{f"params.grpo.window.place={place}": source for place, source in WINDOW_SOURCES.items()},
        **{f"params.reward_set={rule}": source for rule, source in SET_SOURCES.items()},
    }
    named_by = ("params.engine",)
    lowers_memory = (*(f"{name}.chunk" for name in ENGINES), "groups")
    reference: str | None = None
    """Adapter that the engine's KL penalty pulls towards; None: the base."""

    def __init__(self, options: RlOptions):
        super().__init__(options)
        self.engine = options.build()
        self.adapters = self.engine.adapters

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse oversized batches, what the engine refuses, and rules for rewards that contradict others."""
        super().check(spec, sampler)
        options = cls.Options.model_validate(spec.params)
        if options.groups * options.group_size > MOST_PICTURES:
            raise UsageError(
                f"params.groups {options.groups} times params.group_size {options.group_size} exceeds "
                f"{MOST_PICTURES:,} images per task and update: lower one of them"
            )
        options.build().check(sampler, options.batch(sampler.passes(spec.sampler.guidance)))
        if options.mixing != "per_reward" and not options.global_std:
            raise UsageError(
                f"params.mixing {options.mixing} divides all tasks by one standard deviation: "
                "set params.global_std true"
            )
        if options.reward_set != "sum" and not spec.rewards:
            raise UsageError(
                f"params.reward_set {options.reward_set} does nothing, because no task has several rewards: set "
                "rewards.TASK.SCORER=WEIGHT"
            )
        check_rule(options.reward_set, options.mixing, options.global_std)

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """The engine's passes per task, times the tasks of one update."""
        options = cls.Options.model_validate(spec.params)
        engine, batch = options.build(), options.batch(sampler.passes(spec.sampler.guidance))
        tasks = cls.tasks_per_update(spec)
        pictures = tasks * batch.pictures
        return Work(
            engine.passes(sampler, batch) * tasks,
            drawn=batch.pictures,
            trained_at_once=engine.trained_at_once(batch),
            kept=engine.kept(sampler) * pictures,
            prompts=pictures,
            pictures=pictures,
            pictures_at_once=batch.pictures,
            guided=engine.trained_guidance is None,
        )

    @classmethod
    def tasks_per_update(cls, spec) -> int:
        """Number of tasks that one update trains."""
        return len(spec.tasks)

    @property
    def inner_updates(self) -> int:
        """Optimiser steps per update: the engine's setting."""
        return self.engine.options.inner_updates

    def collect(self, lab: Lab, task: str) -> Samples:
        """Sample `group_size` images per prompt and have them scored; `mix` fills in rewards and advantages."""
        o = self.options
        drawn = lab.prompts(task, o.groups)
        prompts = [prompt for prompt in drawn for _ in range(o.group_size)]
        conditioning = lab.encode(prompts)
        trajectory = self.engine.sample(lab, task, conditioning, o.group_size)
        scores = lab.score_later(task, trajectory.final, prompts)
        return Samples(trajectory, conditioning, o.group_size, scores)

    def mix(self, lab: Lab, experiences: dict[str, Samples]) -> dict[str, Samples]:
        """Turn rewards into advantages, once those of all tasks are known.

        Standard deviations are of the whole batch, so processes exchange their rewards and then keep their own rows.
        """
        o = self.options
        own = {}
        for task, samples in experiences.items():
            scores = samples.scores()
            own[task] = {
                scorer: rewards.reshape(-1, o.group_size)
                for scorer, rewards in {WEIGHTED: scores.rewards, **scores.separate}.items()
            }
            for scorer, rewards in own[task].items():
                lab.note(f"reward/{task}.{scorer}" if scorer else f"reward/{task}", float(rewards.mean()))
            lab.note(f"reward_std/{task}", float(own[task][WEIGHTED].std(1).mean()))
        shards = lab.workers.gather(own)
        # Shares are concatenated in the order of processes, which is the order of prompts.
        separate = {
            task: {scorer: np.concatenate([shard[task][scorer] for shard in shards]) for scorer in own[task]}
            for task in experiences
        }
        weighted = {task: rewards.pop(WEIGHTED) for task, rewards in separate.items()}
        scaled = advantages(weighted, o.mixing, o.global_std)
        for task, values in scaled.items():
            if separate[task]:
                weights = lab.tasks[task].reward_weights
                values = set_advantages(values, separate[task], weights, o.reward_set, o.global_std)
            before = sum(len(shard[task][WEIGHTED]) for shard in shards[: lab.workers.index])
            mine = values[before : before + len(own[task][WEIGHTED])].reshape(-1)
            device = experiences[task].trajectory.final.device
            experiences[task].advantages = torch.as_tensor(mine, dtype=torch.float32, device=device)
        return experiences

    def losses(self, lab: Lab, task: str, experience: Samples) -> Iterator[Tensor]:
        """The engine's pieces of the loss, with its penalty towards `reference`."""
        yield from self.engine.losses(lab, task, experience, self.reference)

    def after_update(self, lab: Lab) -> None:
        """Let the engine update its adapters."""
        super().after_update(lab)
        self.engine.after_update(lab)
