"""The contract of methods: a plan over tasks, what to collect and what to minimise. The loop does everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import model_validator

from bench.backbones.meter import Passes
from bench.config.settings import Settings, merge
from bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from bench.api.lab import Lab
    from bench.config.spec import Spec
    from bench.sampler.rollout import Sampler

Experience = TypeVar("Experience")
"""What a method collects in an update: any type of its choice."""


@dataclass(frozen=True)
class Needs:
    """What a method needs. Teachers and a stochastic kernel are checked before anything is loaded."""

    teachers: bool = False
    """Whether it needs a teacher for every task."""
    rewards: bool = False
    """Whether it scores its rollouts; used by `bench list` and by advice on memory."""
    stochastic: bool = False
    """Whether it needs a stochastic kernel."""


@dataclass(frozen=True)
class Work:
    """The work of one update over all tasks; an average over updates if the tasks take turns."""

    passes: Passes
    """Forward and backward passes through the model."""
    drawn: int = 0
    """Latents per forward pass without gradients, not counting guidance; compute.batch limits it."""
    trained_at_once: int = 0
    """Latents whose activations are kept for one backward pass, not counting guidance; 0 means unknown. If each term of
    a loss has its own forward pass, the number for the largest term."""
    kept: int = 0
    """Latents (float32) kept in memory from collection to the optimiser step: states, velocities, targets."""
    prompts: int = 0
    """Encoded prompts kept in memory during the same time."""
    pictures: int = 0
    """Number of images that are decoded and scored."""
    pictures_at_once: int = 0
    """Number of images per call of `Lab.score`, which decodes them in parts."""
    guided: bool = True
    """Whether passes with gradients are guided where sampler.guidance is not 1."""


class Options(Settings):
    """Base class of a method's settings (`params` in a spec)."""

    unsaid: ClassVar[tuple[str, ...]] = ()
    """Settings that records omit at their defaults, because they were added after the first records. A subclass names
    only its own."""

    @model_validator(mode="before")
    @classmethod
    def _sections_complete_their_defaults(cls, given: Any) -> Any:
        """Complete a section of which only some settings are given by the field's default, not by its type's."""
        if not isinstance(given, dict):
            return given
        given = dict(given)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Options) and isinstance(given.get(name), dict):
                whole = field.default.model_dump()
                merge(whole, given[name])
                given[name] = whole
        return given

    @property
    def idle(self) -> dict[str, str]:
        """What has no effect -> the reason, such as "params.engine is nft".

        A key is the name of a nested section of Options, or of one of its settings ("crd.reference_guidance"). Changing
        it with --set is an error.
        """
        return {}

    def record(self) -> dict[str, Any]:
        """Plain data for a spec; `unsaid` settings, also those of nested Options, are omitted at their defaults."""
        fields = type(self).model_fields
        later = {name for cls in type(self).__mro__ for name in vars(cls).get("unsaid", ())}
        omitted = {name for name in later if getattr(self, name) == fields[name].default}
        record = self.model_dump(exclude=omitted)
        # model_dump knows nothing of `unsaid` in nested sections.
        for name in record:
            section = getattr(self, name)
            if isinstance(section, Options):
                record[name] = section.record()
        return record


class Method(ABC, Generic[Experience]):
    """A method of post-training one student adapter on several tasks."""

    name: ClassVar[str]
    """Name under which it is registered."""
    title: ClassVar[str] = ""
    """Its name in reports, such as "Joint RL"; empty for `name`."""
    named_by: ClassVar[tuple[str, ...]] = ()
    """Settings whose variant (`variants`) belongs to its name in reports also where lines do not differ in it, such as
    params.engine."""
    source: ClassVar[str]
    """Paper and equation."""
    variants: ClassVar[dict[str, str]] = {}
    """Setting and value ("params.engine=nft") -> paper and equation, if a setting chooses between published methods. A
    subclass names only its own."""
    needs: ClassVar[Needs] = Needs()
    """Its requirements."""
    Options: ClassVar[type[Options]] = Options
    """Type of its settings."""
    adapters: tuple[str, ...] = ()
    """Names of adapters that it keeps in addition to the student; they start equal to it and are checkpointed."""
    in_all: ClassVar[bool] = True
    """Whether `--methods all` includes it. False if it needs settings, or tasks of a certain kind."""
    several_tasks: ClassVar[bool] = True
    """False for a method that trains on exactly one task."""
    trains: ClassVar[bool] = True
    """False for a method whose result is complete after `prepare`, such as a merge of adapters."""
    lowers_memory: ClassVar[tuple[str, ...]] = ()
    """Options that lower the memory of an update, as `params` spells them ("nft.chunk"), the most effective first. The
    first one directly limits the latents per forward pass with gradients (Work.trained_at_once)."""

    def __init__(self, options: Any):
        self.options = options

    @classmethod
    def check(cls, spec: Spec, sampler: Sampler) -> None:
        """Raise UsageError for a spec that this method cannot run. Called before anything is loaded."""
        if not cls.several_tasks and len(spec.tasks) > 1:
            raise UsageError(f"method {cls.name!r} takes one task, got {', '.join(spec.tasks)}")
        if cls.needs.stochastic and not sampler.stochastic:
            raise UsageError(f"method {cls.name!r} needs a stochastic kernel: set sampler.kernel and sampler.eta > 0")

    @classmethod
    def all_variants(cls) -> dict[str, str]:
        """The `variants` of this method and of its base classes."""
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            found |= vars(base).get("variants", {})
        return found

    @classmethod
    def inputs(cls, spec: Spec) -> dict[str, str]:
        """name -> content hash of the user's files that it learns from, recorded whenever a run starts.

        A run whose files have changed since is refused. Default: it learns from none.
        """
        return {}

    @property
    def inner_updates(self) -> int:
        """Number of optimiser steps on the data that one update collects; `lab.inner` is the current one."""
        return 1

    @classmethod
    def points(cls, spec: Spec) -> tuple[str, ...]:
        """Names of further students, such as "ocr=1+pickscore=0", of a method that trains a family of them at once.

        They are evaluated and saved at the end, each after `show`; together they are a front. Default: none.
        """
        return ()

    def show(self, lab: Lab, point: str | None) -> None:
        """Set the student's average (EMA) up to be evaluated or saved: as one of `points`, or None as the student.

        Default: there is nothing to set up.
        """

    def prepare(self, lab: Lab) -> None:
        """Called once before the first update of a new run, without gradients. May change the student's weights."""

    def plan(self, lab: Lab) -> dict[str, float]:
        """task -> weight of its gradient in this update. Default: equal weights.

        The plan may depend only on `lab.step`, `lab.progress` and `state`, so that a resumed run follows the same plan.
        """
        return dict.fromkeys(lab.tasks, 1 / len(lab.tasks))

    @abstractmethod
    def collect(self, lab: Lab, task: str) -> Experience:
        """Collect the data that this update learns from for one task, such as rollouts. Called without gradients."""

    def mix(self, lab: Lab, experiences: dict[str, Experience]) -> dict[str, Experience]:
        """Combine the experiences of all tasks before any loss is computed. Default: return them unchanged."""
        return experiences

    @abstractmethod
    def losses(self, lab: Lab, task: str, experience: Experience) -> Iterator[Tensor]:
        """Scalar terms whose sum is the task's loss. Each is backpropagated and freed before the next is computed."""

    def combine(self, lab: Lab, gradients: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
        """Combine the gradients of the tasks, each flat float32 [P] over all the student's weights, into one.

        The gradients are not multiplied by the plan's `weights`; they are summed over the processes of the run and
        without float16's loss scale. Every process receives the same gradients and must return the same result. Called
        once per optimiser step, before clipping, without gradients. Default: the weighted sum. A method that overrides
        this needs memory for one gradient per task.
        """
        first, *others = gradients
        total = weights[first] * gradients[first]
        for task in others:
            total += weights[task] * gradients[task]
        return total

    def combines(self) -> bool:
        """Whether `combine` must be called. Default: it is called if a method overrides it."""
        return type(self).combine is not Method.combine

    def state(self) -> dict[str, Tensor]:
        """name -> tensor: what it keeps between updates besides its adapters, saved in every checkpoint.

        It must be the same in every process of a run.
        """
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned; the tensors are on the CPU."""

    @classmethod
    @abstractmethod
    def predict(cls, spec: Spec, sampler: Sampler) -> int:
        """NFE of one update in budget units: forward 1, backward 2, doubled by guidance (bench/backbones/meter.py)."""

    @classmethod
    def work(cls, spec: Spec, sampler: Sampler) -> Work | None:
        """The work of one update, from which hours and memory are predicted. Default None: only `predict` is known."""
        return None

    def after_update(self, lab: Lab) -> None:
        """Called after the optimiser step, without gradients."""

    def remarks(self, rows: list[dict[str, float]]) -> list[str]:
        """Warnings about a finished run, from its rows of metrics; they are printed and kept in its summary."""
        return []
