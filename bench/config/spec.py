"""What a run is: typed, validated, hashed, overridable with key=value."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from bench.config.bounds import Decay, DeviceName, Guidance, Positive, Shift, Targets, UnitInterval
from bench.config.compute import Compute
from bench.config.settings import Settings
from bench.hashing import text_hash
from bench.registry import find
from bench.sampler.rollout import Sampler, euler
from bench.sampler.schedule import TRAIN_TIMESTEPS, make_schedule
from bench.sampler.transitions import get_kernel

PLACEMENT = ("device", "batch", "url")
"""Sources of a scorer that say where, not what, it is."""
Table = Literal["diffusers", "once"]
Steps = Annotated[int, Field(gt=0, le=TRAIN_TIMESTEPS)]


class BudgetSpec(Settings):
    """When to stop; exactly one is set."""

    updates: Annotated[int, Field(gt=0)] | None = None
    nfe: Annotated[int, Field(gt=0)] | None = Field(default=None, validation_alias=AliasChoices("nfe", "evaluations"))
    """Training NFE, counted as bench/backbones/meter.py does. Older records say `evaluations`."""
    seconds: Positive | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "BudgetSpec":
        if sum(v is not None for v in (self.updates, self.nfe, self.seconds)) != 1:
            raise ValueError("set exactly one of budget.updates, budget.nfe, budget.seconds")
        return self


class SamplerSpec(Settings):
    """How training rollouts are drawn."""

    kernel: str = "ode"
    eta: float = 0.0
    steps: Steps = 10
    shift: Shift | None = None
    """None: the backbone's."""
    table: Table = "diffusers"
    guidance: Guidance = 1.0

    def build(self, shift: float) -> Sampler:
        """The Sampler; raises UsageError for a kernel, eta, steps or table that does not exist."""
        schedule = make_schedule(self.steps, self.shift or shift, self.table)
        sampler = Sampler(schedule, get_kernel(self.kernel), self.eta)
        _ = sampler.coefficients  # an eta that the kernel refuses is refused here
        return sampler


class OptimizerSpec(Settings):
    """AdamW on the student's adapter."""

    lr: Annotated[float, Field(gt=0, le=100)] = 3e-4
    lr_end: UnitInterval = 1.0
    """Multiplier reached linearly at the end of the budget."""
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Annotated[float, Field(gt=0, le=100)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-4
    clip: Positive = 1.0


class LoraSpec(Settings):
    """The student's LoRA adapter."""

    rank: Annotated[int, Field(gt=0, le=4096)] = 32
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    targets: Targets | None = None
    """None: the published set (every attention projection)."""
    start: Annotated[str, Field(min_length=1)] | None = None
    """Adapter of this rank and alpha that the student starts from (folder or hub:OWNER/REPO/FOLDER); None: the base."""


class EmaSpec(Settings):
    """Average of the student's weights, used for evaluation and as the result (bench/training/ema.py)."""

    decay: Decay = 0.9
    """The largest; the warm-up begins at 0.1."""
    every: Annotated[int, Field(gt=0)] = 8
    """Optimiser steps between averages."""


class EvaluationSpec(Settings):
    """Held-out evaluation of the EMA student with the deterministic Euler sampler."""

    steps: Steps = 40
    guidance: Guidance | None = None
    """None: the one it was trained at (sampler.guidance)."""
    shift: Shift | None = None
    """None: sampler.shift, or else the backbone's."""
    table: Table | None = None
    """None: sampler.table."""
    points: Annotated[tuple[UnitInterval, ...], Field(max_length=1000)] = (0.5, 1.0)
    """Shares of the budget at which to evaluate; the end always is."""
    batch: Annotated[int, Field(gt=0)] = 96
    split: Literal["validation", "test"] = "test"
    """Choose settings on validation prompts, report on test prompts. (The shipped teachers and analytic OPD's recipe on
    micro are older than the validation split: they were chosen without it.)"""
    pictures: bool = False
    """Whether the result's pictures are kept, in GenEval's official layout under pictures/<task>, and the base's and
    teachers' in the results folder's cache."""

    @property
    def scale(self) -> float:
        """The guidance scale, once `resolve` has said it."""
        assert self.guidance is not None, "the spec is not resolved"
        return self.guidance

    def build(self, shift: float) -> Sampler:
        """The deterministic Euler sampler of every evaluation; `shift` is the backbone's."""
        return euler(self.steps, self.shift or shift, self.table or "diffusers")


class ProbesSpec(Settings):
    """What is measured along training besides scores, at the evaluation points; costs are on a clock of their own."""

    interference: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Gradient estimates per half for the cosines between tasks; 0 measures none."""


class Spec(Settings):
    """A run, completely. Two specs that differ only in `seed` share a hash."""

    method: str
    backbone: str = "micro"
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    budget: BudgetSpec = BudgetSpec(updates=100)
    sampler: SamplerSpec = SamplerSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    lora: LoraSpec = LoraSpec()
    ema: EmaSpec = EmaSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    probes: ProbesSpec = ProbesSpec()
    teachers: dict[str, str] = Field(default={})
    """task -> 'shipped', 'train' or a folder with a peft adapter; only for methods that need teachers."""
    teacher_guidance: dict[str, Guidance] = Field(default={})
    """task -> its teacher's guidance scale; by default the one its run was evaluated at, for a folder that is no run's
    adapter the student's."""
    scorers: dict[str, dict[str, str]] = Field(default={})
    """task -> what its scorer is made of, where the backbone's world leaves that open; see bench list tasks."""
    compute: Compute = Compute()
    checkpoint_every: Annotated[int, Field(gt=0)] = 25
    """Updates between checkpoints."""
    device: DeviceName = "cpu"
    params: dict[str, Any] = Field(default={})
    """The method's own options, validated by the method."""

    def digest(self, backbone_hash: str) -> str:
        """Identity of the run apart from its seed: settings and the backbone's weights."""
        settings = {name: value for name, value in self.without_placement().record().items() if name != "seed"}
        # A run's name does not change with the name of a setting: hashes were made when this one was `evaluations`.
        settings["budget"]["evaluations"] = settings["budget"].pop("nfe")
        if self._averages_rarely:
            settings["ema"]["every_counts"] = "optimiser steps"  # once it counted updates: these are other runs
        return text_hash({"spec": settings, "backbone": backbone_hash})

    @property
    def _averages_rarely(self) -> bool:
        """Whether averages of weights are further apart than one update of one optimiser step."""
        method = find("method", self.method)
        inner = method(method.Options.model_validate(self.params)).inner_updates
        return method.trains and (self.ema.every > 1 or inner > 1)

    def too_short(self, updates: int) -> str:
        """What is to be said of a run of so many updates that ends before weights are averaged for the first time;
        empty for any other."""
        method = find("method", self.method)
        steps = updates * method(method.Options.model_validate(self.params)).inner_updates
        if not method.trains or steps >= self.ema.every:
            return ""
        return (
            f"ema.every={self.ema.every} is more than the {steps} optimiser steps of this run: the average of weights, "
            "which is evaluated and kept, stays what training began with; --set ema.every=1 averages at every step"
        )

    def without_placement(self) -> "Spec":
        """With settings at their defaults that only say where and in what portions to compute.

        They move last bits, not results; a run that ran out of memory goes on under other ones.
        """
        compute = Compute(**self.compute.model_dump(include=set(Compute.RESULT)))
        scorers = {t: {k: v for k, v in s.items() if k not in PLACEMENT} for t, s in self.scorers.items()}
        evaluation = self.evaluation.model_copy(update={"batch": EvaluationSpec.model_fields["batch"].default})
        kept = {task: sources for task, sources in scorers.items() if sources}
        return self.model_copy(update={"compute": compute, "scorers": kept, "evaluation": evaluation})

    def record(self) -> dict[str, Any]:
        """Plain data for spec.json; settings that most runs leave alone are left out where they are."""
        evaluation = self.evaluation
        # Of each section: True leaves all of it out, a set the settings that it names.
        unsaid: dict[str, Any] = {
            "scorers": self.scorers == SILENT["scorers"] or set(),
            "compute": self.compute == SILENT["compute"] or self.compute.model_dump().keys() - self.compute.record(),
            "lora": set() if self.lora.start else {"start"},
            "evaluation": {name for name in ("pictures", "shift", "table") if not getattr(evaluation, name)},
        }
        return self.model_dump(mode="json", exclude=unsaid)

    def with_seed(self, seed: int) -> "Spec":
        return self.model_copy(update={"seed": seed})


SILENT = {name: field.default for name, field in Spec.model_fields.items()}
