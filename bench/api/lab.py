"""The `Lab` that a method receives: backbone, tasks, teachers, sampler, and random numbers fixed by the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bench.api.draws import Draws
from bench.api.scores import NOT_FINITE, finite, parts_of, stacked
from bench.api.task import Prompt, Scores, Task
from bench.errors import BenchError, UsageError
from bench.hashing import seed_of
from bench.sampler.draws import Rows
from bench.sampler.rollout import Sampler, Velocity
from bench.system.background import Background
from bench.system.workers import ALONE, Workers

if TYPE_CHECKING:
    from torch import Tensor

    from bench.backbones.conditioning import Conditioning
    from bench.backbones.flow import FlowBackbone
    from bench.sampler.generator import RowGenerator

WAITING = 4 * 2**30
"""Bytes of images per task that may wait in the host's memory for a scorer: 1,365 of 512 x 512 pixels."""
STUDENT, EMA = "student", "ema"
"""Names of the adapters of the trained student and of its moving average."""


@dataclass
class Lab:
    """Everything that a method may use in a run: models, tasks, settings, random numbers and the state of training."""

    backbone: FlowBackbone
    tasks: dict[str, Task]
    """Tasks of the run by name."""
    teachers: dict[str, str]
    """task -> name of its teacher's adapter."""
    teacher_guidance: dict[str, float]
    """task -> guidance scale of its teacher."""
    sampler: Sampler
    """The sampler of training rollouts."""
    guidance: float
    """The student's guidance scale in rollouts and training."""
    seed: int
    """Seed of the run."""
    step: int = 0
    """Index of the current update, from 0."""
    progress: float = 0.0
    """Fraction of the budget spent, from 0 to 1, when the current update started."""
    last_progress: float = 0.0
    """Fraction of the budget spent when the previous update started."""
    inner: int = 0
    """Index of the current optimiser step within the update (Method.inner_updates)."""
    workers: Workers = ALONE
    """The processes that share the run."""
    rows: dict[str, Rows] = field(default_factory=dict)
    """task -> this process's shard of the prompts of this update; empty if a single process has them all."""
    given: list[RowGenerator] = field(default_factory=list)
    """Generators created in this update if several processes share it, for checks in bench/training/sharing.py."""
    draws: Draws = field(default_factory=Draws)
    """When tasks drew prompts, to foresee when they will."""
    notes: dict[str, float] = field(default_factory=dict)
    """Numbers that the method logs with this update."""

    def seed_for(self, purpose: str, task: str, step: int | None = None) -> int:
        """The seed of the random numbers for one purpose and task in an update, by default this one."""
        return seed_of(self.seed, self.step if step is None else step, task, purpose)

    def generator(self, purpose: str, task: str = "") -> RowGenerator:
        """A new generator, fixed by (run seed, step, task, purpose): a resumed run draws the same.

        Draw batches with `bench.sampler.draws`, which gives each process its own rows.
        """
        from bench.sampler.generator import RowGenerator

        generator = RowGenerator()
        generator.manual_seed(self.seed_for(purpose, task))
        generator.rows = self.rows.get(task)
        if self.workers.count > 1:
            # Its use without `draw` would be wrong with several processes, and is reported at the end of the update.
            generator.settle()
            self.given.append(generator)
        return generator

    def numpy_generator(self, purpose: str, task: str = "") -> np.random.Generator:
        """A generator that gives the same numbers in every process, for choices that all prompts of an update share.

        Do not draw one number per prompt from it: every process would get the numbers of the first prompts.
        """
        return np.random.default_rng(self.seed_for(purpose, task))

    def prompts(self, task: str, count: int) -> list[Prompt]:
        """This process's shard of `count` training prompts of a task for this update.

        Raises UsageError if there are fewer prompts than processes.
        """
        mine = self.shard_rows(task, count)
        self.draws.add(task, self.step, count)
        return self._prompts(task, self.step, count)[mine.start : mine.stop]

    def _prompts(self, task: str, step: int, count: int) -> list[Prompt]:
        return self.tasks[task].sample(count, np.random.default_rng(self.seed_for("prompts", task, step)))

    def _upcoming(self) -> Iterator[str]:
        """Texts of this process's prompts of later updates, as far as they can be foreseen."""
        share = self.progress - self.last_progress
        left = (1 - self.progress) / share if share > 0 else 1  # updates within the budget, with this one
        for task, step, count in self.draws.upcoming(self.step):
            if step >= self.step + left:
                return
            mine = self.workers.shard(count)
            yield from (prompt.text for prompt in self._prompts(task, step, count)[mine.start : mine.stop])

    def shard_rows(self, task: str, count: int) -> range:
        """This process's shard of `count` rows of this update; all rows if there is a single process.

        A method that learns from rows other than `prompts`, such as pairs of a data set, gets its shard here. Raises
        UsageError if there are fewer rows than processes, or with sharded weights if the shards are unequal.
        """
        if self.workers.count == 1:
            return range(count)
        if count < self.workers.count:
            raise UsageError(
                f"{self.workers.count} processes cannot share {count} prompts per update of task {task!r}: "
                "use at least as many prompts as processes"
            )
        if self.backbone.sharded and count % self.workers.count:
            raise UsageError(
                f"with compute.shard every process must make the same passes, but {self.workers.count} processes "
                f"cannot share {count} prompts per update of task {task!r} equally: use a multiple of the processes"
            )
        mine = self.workers.shard(count)
        self.rows[task] = Rows(mine.start, mine.stop, count)
        return mine

    def shard_fraction(self, task: str) -> float:
        """This process's shard as a fraction of the task's prompts in this update."""
        rows = self.rows.get(task)
        return (rows.stop - rows.start) / rows.whole if rows else 1.0

    def encode(self, prompts: list[Prompt]) -> Conditioning:
        """The encoded texts of prompts."""
        return self.backbone.encode([p.text for p in prompts], self._upcoming())

    def velocity(self, conditioning: Conditioning, adapter: str | None, guidance: float | None = None) -> Velocity:
        """The velocity field of an adapter (None: the base) for fixed prompts; guidance None is the student's."""
        scale = self.guidance if guidance is None else guidance
        return lambda x, sigma: self.backbone.velocity(x, sigma, conditioning, adapter, scale)

    def branches(
        self, conditioning: Conditioning, adapter: str | None
    ) -> Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor]]:
        """The field of an adapter's two velocities that guidance combines: with and without the prompt."""
        return lambda x, sigma: self.backbone.branches(x, sigma, conditioning, adapter)

    def teacher(self, task: str, conditioning: Conditioning) -> Velocity:
        """The velocity field of a task's teacher at the teacher's guidance scale."""
        return self.velocity(conditioning, self.teachers[task], self.teacher_guidance[task])

    def differentiable_reward(self, task: str, latents: Tensor, prompts: list[Prompt]) -> Tensor:
        """Rewards [B] of the images of latents [B, C, H, W], with gradients to the latents.

        Raises UsageError for a task whose reward has no gradient.
        """
        with self.backbone.meter.purpose("scoring"):
            return self.tasks[task].differentiable_reward(self.backbone.decode(latents), prompts)

    def score(self, task: str, latents: Tensor, prompts: list[Prompt]) -> Scores:
        """Scores of the images of latents [B, C, H, W], decoded and scored in parts that fit in memory.

        Raises BenchError if an image or a reward is not finite, because neither a diverged model nor a failed scorer
        may train the student.
        """
        with self.backbone.meter.purpose("scoring"):
            return self._checked(task, self._scored(task, latents, prompts))

    def _scored(self, task: str, latents: Tensor, prompts: list[Prompt]) -> list[Scores]:
        score = self.tasks[task].score
        return [score(self._decoded(task, latents[rows]), prompts[rows]) for rows in parts_of(latents)]

    def score_later(self, task: str, latents: Tensor, prompts: list[Prompt]) -> Callable[[], Scores]:
        """Begin what `score` does; the returned function waits for the scores, and raises as `score` does.

        The scores are the same. Only a scorer that works elsewhere (Task.elsewhere) works meanwhile, and only if all
        images, which are decoded before this returns, take no more than WAITING bytes of the host's memory.
        """
        score, parts = self.tasks[task].score, list(parts_of(latents))
        with self.backbone.meter.purpose("scoring"):
            if not self.tasks[task].elsewhere or not parts:
                scores = self.score(task, latents, prompts)
                return lambda: scores
            first = self._decoded(task, latents[parts[0]])
            if first[0].nbytes * len(latents) > WAITING:
                rest = slice(len(first), None)
                scored = [score(first, prompts[parts[0]]), *self._scored(task, latents[rest], prompts[rest])]
                return partial(self._checked, task, scored)
            images = [first.cpu(), *(self._decoded(task, latents[rows]).cpu() for rows in parts[1:])]
        # In the same parts, one after the other, because scores may depend on the other images of a part.
        pieces = [partial(score, part, prompts[rows]) for part, rows in zip(images, parts)]
        work = Background(pieces)

        def wait() -> Scores:
            with self.backbone.meter.purpose("scoring"):
                return self._checked(task, work.results())

        return wait

    def _decoded(self, task: str, latents: Tensor) -> Tensor:
        images = self.backbone.decode(latents)
        if not finite(latents, images).all():
            raise BenchError(f"update {self.step + 1}: task {task!r}: {NOT_FINITE}")
        return images

    def _checked(self, task: str, parts: list[Scores]) -> Scores:
        scores = stacked(parts)
        if not np.isfinite(scores.rewards).all():
            raise BenchError(
                f"update {self.step + 1}: the scorer of task {task!r} returned a reward that is not finite"
            )
        return scores

    def note(self, name: str, value: float) -> None:
        """Log a number with this update."""
        self.notes[name] = value
