"""What a method is: a plan over tasks, what it collects, what it minimises. The loop owns everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from bench.backbones.meter import Passes
from bench.config.settings import Settings
from bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api.lab import Lab
    from bench.config.spec import Spec
    from bench.sampler.rollout import Sampler

Experience = TypeVar("Experience")


@dataclass(frozen=True)
class Needs:
    """What must be there before anything loads."""

    teachers: bool = False
    rewards: bool = False
    stochastic: bool = False


@dataclass(frozen=True)
class Work:
    """What one update asks for, all tasks together; an average where tasks take turns."""

    passes: Passes
    drawn: int = 0
    """Latents that go through the model at once without gradients, guidance not counted; compute.batch cuts them."""
    trained_at_once: int = 0
    """Latents whose activations wait for one backward pass, guidance not counted; 0: not known. Where a piece of a loss
    is of one forward, those of the largest."""
    kept: int = 0
    """Latents (float32) that lie in memory from collecting to the optimiser's step: states, velocities, targets."""
    prompts: int = 0
    """Encoded prompts that lie in memory meanwhile."""
    pictures: int = 0
    """Pictures that are decoded and scored."""
    pictures_at_once: int = 0
    """How many of them are scored in one call, which decodes them part by part."""


class Options(Settings):
    """Base of a method's own settings (`params` in a spec)."""

    unsaid: ClassVar[tuple[str, ...]] = ()
    """Settings that a run's record leaves out where they are at their defaults: those that came later than records."""

    @property
    def idle(self) -> dict[str, str]:
        """Sections of further Options that do nothing -> the setting that says so: --set refuses to change them."""
        return {}

    def record(self) -> dict[str, Any]:
        """What a spec keeps of them, and of sections of further Options within."""
        fields = type(self).model_fields
        silent = {name for name in self.unsaid if getattr(self, name) == fields[name].default}
        sections = {name: value for name in fields if isinstance(value := getattr(self, name), Options)}
        whole = self.model_dump(exclude=silent)
        return {name: sections[name].record() if name in sections else value for name, value in whole.items()}


class Method(ABC, Generic[Experience]):
    """A way to post-train one student adapter on several tasks."""

    name: ClassVar[str]
    source: ClassVar[str]
    """Paper and equation."""
    needs: ClassVar[Needs] = Needs()
    Options: ClassVar[type[Options]] = Options
    adapters: tuple[str, ...] = ()
    """Further adapters the method keeps beside the student; they start equal to it and are checkpointed."""
    several_tasks: ClassVar[bool] = True
    """False for a method that takes exactly one task."""
    trains: ClassVar[bool] = True
    """False for a method whose result is ready after `prepare`."""
    lowers_memory: ClassVar[tuple[str, ...]] = ()
    """Options that lower what an update needs of memory, as `params` spells them ("nft.chunk"), best first: the first
    one bounds the forwards with gradients (Work.trained_at_once) directly."""

    def __init__(self, options: Any):
        self.options = options

    @classmethod
    def check(cls, spec: Spec, sampler: Sampler) -> None:
        """Refuse a spec this method cannot run. Called before anything loads; raises UsageError."""
        if not cls.several_tasks and len(spec.tasks) > 1:
            raise UsageError(f"method {cls.name!r} takes one task, got {', '.join(spec.tasks)}")
        if cls.needs.stochastic and not sampler.stochastic:
            raise UsageError(f"method {cls.name!r} needs a stochastic kernel: set sampler.kernel and sampler.eta > 0")

    @property
    def inner_updates(self) -> int:
        """Optimiser steps on what one update collected; `lab.inner` counts them."""
        return 1

    def prepare(self, lab: Lab) -> None:
        """Called once, before a fresh run's first update, without gradients; may write to the student."""

    def plan(self, lab: Lab) -> dict[str, float]:
        """task -> weight of its gradient in this update: a function of `lab.step`, `lab.progress` and `state` alone.

        Default: every task equally.
        """
        return dict.fromkeys(lab.tasks, 1 / len(lab.tasks))

    @abstractmethod
    def collect(self, lab: Lab, task: str) -> Experience:
        """What this update learns from. Runs without gradients."""

    def mix(self, lab: Lab, experiences: dict[str, Experience]) -> dict[str, Experience]:
        """Look at all tasks' experiences of an update together before any loss is taken. Default: leave them."""
        return experiences

    @abstractmethod
    def losses(self, lab: Lab, task: str, experience: Experience) -> Iterator[Tensor]:
        """Scalar pieces whose sum is the task's loss; each is backpropagated and freed before the next is asked for."""

    def combine(self, lab: Lab, gradients: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
        """One gradient from those of the tasks, each flat float32 [P] over all the student's weights.

        They are the tasks' own (the plan's `weights` are not in them), summed over the processes of a run and free of
        float16's loss scale; every process is given the same ones and must return the same one. Called before the
        gradient is clipped, once an optimiser step, without gradients. Default: the weighted sum. A method with a rule
        of its own needs memory for one gradient a task.
        """
        first, *others = gradients
        total = weights[first] * gradients[first]
        for task in others:
            total += weights[task] * gradients[task]
        return total

    @classmethod
    def combines(cls) -> bool:
        """Whether it has a rule of its own for the tasks' gradients."""
        return cls.combine is not Method.combine

    def state(self) -> dict[str, Tensor]:
        """What it remembers between updates besides its adapters: name -> tensor. Every checkpoint holds it, and a
        resumed run goes on from it. It must be the same in every process of a run."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned; the tensors are on the CPU."""

    @classmethod
    @abstractmethod
    def predict(cls, spec: Spec, sampler: Sampler) -> int:
        """NFE of one update, in the unit of budgets: forward 1, backward 2 by convention, guidance
        doubles (bench/backbones/meter.py)."""

    @classmethod
    def work(cls, spec: Spec, sampler: Sampler) -> Work | None:
        """What one update does, from which hours and memory are predicted. Default None: not known beyond `predict`."""
        return None

    def after_update(self, lab: Lab) -> None:
        """Called after the optimiser's step, without gradients."""
