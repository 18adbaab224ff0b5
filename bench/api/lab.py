"""What a method is handed: backbone, tasks, teachers, sampler, and seeds that are functions of the step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bench.api.scores import NOT_FINITE, finite, parts_of, stacked
from bench.api.task import Prompt, Scores, Task
from bench.errors import BenchError, UsageError
from bench.hashing import seed_of
from bench.sampler.draws import Rows
from bench.sampler.rollout import Sampler, Velocity
from bench.system.workers import ALONE, Workers

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning
    from bench.backbones.flow import FlowBackbone
    from bench.sampler.generator import RowGenerator

STUDENT, EMA = "student", "ema"


@dataclass
class Lab:
    """The laboratory of one run. `step` is the update under way, `progress` its share of the budget in [0, 1]."""

    backbone: FlowBackbone
    tasks: dict[str, Task]
    teachers: dict[str, str]
    """task -> name of the teacher's adapter."""
    teacher_guidance: dict[str, float]
    """task -> guidance scale of its teacher."""
    sampler: Sampler
    guidance: float
    """The student's guidance scale in rollouts and training."""
    seed: int
    step: int = 0
    progress: float = 0.0
    last_progress: float = 0.0
    """Progress at which the previous update began."""
    inner: int = 0
    """Which of the method's inner updates is under way."""
    workers: Workers = ALONE
    rows: dict[str, Rows] = field(default_factory=dict)
    """task -> which prompts of this update are this process's; empty where one process has them all."""
    given: list[RowGenerator] = field(default_factory=list)
    """Generators handed out in this update, where several processes share it (bench/training/sharing.py)."""
    notes: dict[str, float] = field(default_factory=dict)
    """What a method wants logged with this update."""

    def seed_for(self, purpose: str, task: str) -> int:
        """The seed of one kind of draw in this update."""
        return seed_of(self.seed, self.step, task, purpose)

    def generator(self, purpose: str, task: str = "") -> RowGenerator:
        """A fresh generator for (run seed, step, task, purpose): the same on resume, whatever ran before.

        Draw batches from it by `bench.sampler.draws`, which gives every process its rows of them.
        """
        from bench.sampler.generator import RowGenerator

        generator = RowGenerator()
        generator.manual_seed(self.seed_for(purpose, task))
        generator.rows = self.rows.get(task)
        if self.workers.count > 1:
            generator.settle()
            self.given.append(generator)
        return generator

    def numpy_generator(self, purpose: str, task: str = "") -> np.random.Generator:
        """A generator that gives every process the same numbers: for what the prompts of an update share, such as
        which task. Never for one number a prompt: every process would draw those of the first prompts."""
        return np.random.default_rng(self.seed_for(purpose, task))

    def prompts(self, task: str, count: int) -> list[Prompt]:
        """This process's share of `count` training prompts of a task for this update.

        Raises UsageError where there are fewer prompts than processes.
        """
        drawn = self.tasks[task].sample(count, self.numpy_generator("prompts", task))
        mine = self.shard_rows(task, count)
        return drawn[mine.start : mine.stop]

    def shard_rows(self, task: str, count: int) -> range:
        """Which of `count` rows of this update, prompts or pairs of a given set, are this process's; all of them where
        there is one process. Whoever learns from other rows than `prompts` asks for its own here.

        Raises UsageError where there are fewer rows than processes.
        """
        if self.workers.count == 1:
            return range(count)
        if count < self.workers.count:
            raise UsageError(f"{self.workers.count} processes cannot share {count} prompts of task {task!r} an update")
        mine = self.workers.shard(count)
        self.rows[task] = Rows(mine.start, mine.stop, count)
        return mine

    def shard_fraction(self, task: str) -> float:
        """Share of the task's prompts of this update that are this process's."""
        rows = self.rows.get(task)
        return (rows.stop - rows.start) / rows.whole if rows else 1.0

    def encode(self, prompts: list[Prompt]) -> Conditioning:
        return self.backbone.encode([p.text for p in prompts])

    def velocity(self, conditioning: Conditioning, adapter: str | None, guidance: float | None = None) -> Velocity:
        """The velocity field of an adapter under fixed prompts; guidance None is the student's."""
        scale = self.guidance if guidance is None else guidance
        return lambda x, sigma: self.backbone.velocity(x, sigma, conditioning, adapter, scale)

    def teacher(self, task: str, conditioning: Conditioning) -> Velocity:
        """The velocity field of a task's teacher at its own guidance scale."""
        return self.velocity(conditioning, self.teachers[task], self.teacher_guidance[task])

    def differentiable_reward(self, task: str, latents: Tensor, prompts: list[Prompt]) -> Tensor:
        """Rewards [B] of decoded latents, through which gradients flow back to them. Raises UsageError for a task whose
        reward has none."""
        with self.backbone.meter.purpose("scoring"):
            return self.tasks[task].differentiable_reward(self.backbone.decode(latents), prompts)

    def score(self, task: str, latents: Tensor, prompts: list[Prompt]) -> Scores:
        """Decode and score, part by part. Raises BenchError if a picture or a reward is not finite: neither a broken
        model nor a failed scorer must train anything."""
        with self.backbone.meter.purpose("scoring"):
            scores = stacked([self._scored(task, latents[rows], prompts[rows]) for rows in parts_of(latents)])
        if not np.isfinite(scores.rewards).all():
            raise BenchError(f"update {self.step + 1}: task {task!r} gave a reward that is not finite")
        return scores

    def _scored(self, task: str, latents: Tensor, prompts: list[Prompt]) -> Scores:
        images = self.backbone.decode(latents)
        if not finite(latents, images).all():
            raise BenchError(f"update {self.step + 1}: task {task!r}: {NOT_FINITE}")
        return self.tasks[task].score(images, prompts)

    def note(self, name: str, value: float) -> None:
        """Log a number with this update."""
        self.notes[name] = value
