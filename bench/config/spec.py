"""The specification of a run: typed, validated and hashed settings, which key=value overrides can change."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from bench.config.bounds import Decay, DeviceName, Guidance, Moderate, Positive, Shift, Targets, UnitInterval
from bench.config.compute import Compute
from bench.config.settings import Settings
from bench.config.trackers import Tracker
from bench.hashing import text_hash
from bench.registry import find
from bench.sampler.levels import Levels
from bench.sampler.rollout import Sampler, euler
from bench.sampler.schedule import TRAIN_TIMESTEPS
from bench.sampler.transitions import get_kernel

PLACEMENT = ("device", "batch", "url")
"""Scorer settings that decide where and in what portions it runs, not what it computes."""


def measuring(scorers: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """task -> its scorer's settings that decide what it computes, for the tasks that have some."""
    kept = {task: {key: value for key, value in own.items() if key not in PLACEMENT} for task, own in scorers.items()}
    return {task: own for task, own in kept.items() if own}


Table = Literal[
    "diffusers", "once", "dpm", "leading", "trailing", "linspace", "euler_linspace", "dpm_leading", "dpm_linspace"
]
"""How the table of sigmas is built: the first three are of flow-matching models (bench/sampler/schedule.py), the others
of diffusion models (bench/sampler/diffusion_levels.py)."""
Steps = Annotated[int, Field(gt=0, le=TRAIN_TIMESTEPS)]
"""A number of sampling steps."""


def _one_or_more(value: Any) -> Any:
    """A single name as a list of one."""
    return (value,) if isinstance(value, str) else value


class BudgetSpec(Settings):
    """When training stops. Exactly one of the three limits is set."""

    updates: Annotated[int, Field(gt=0)] | None = None
    """Number of updates."""
    nfe: Annotated[int, Field(gt=0)] | None = Field(default=None, validation_alias=AliasChoices("nfe", "evaluations"))
    """Training NFE, as bench/backbones/meter.py counts it. Older records use the key `evaluations`."""
    seconds: Positive | None = None
    """Training time in seconds, including the scoring of rollouts."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "BudgetSpec":
        limits = (self.updates, self.nfe, self.seconds)
        if sum(limit is not None for limit in limits) != 1:
            raise ValueError("set exactly one of budget.updates, budget.nfe, budget.seconds")
        return self


class SamplerSpec(Settings):
    """How training rollouts are sampled."""

    kernel: str = "ode"
    """Transition kernel (bench/sampler/transitions.py)."""
    eta: float = 0.0
    """Noise level of the kernel; 0 makes every kernel deterministic."""
    steps: Steps = 10
    """Number of sampling steps."""
    shift: Shift | None = None
    """Timestep shift; None means the backbone's."""
    table: Table = "diffusers"
    guidance: Guidance = 1.0
    """The student's guidance scale."""

    def build(self, levels: Levels, embedded_guidance: bool = False) -> Sampler:
        """The Sampler of a backbone with these noise levels.

        Raises UsageError for a kernel, eta, steps, table or shift that is invalid.
        """
        schedule = levels.schedule(self.steps, self.table, self.shift)
        sampler = Sampler(schedule, get_kernel(self.kernel), self.eta, embedded_guidance)
        # The coefficients are computed on first access, and only then does a kernel reject an eta out of its range.
        _ = sampler.coefficients
        return sampler


class OptimizerSpec(Settings):
    """Settings of the optimizer that trains the student's adapter."""

    name: Annotated[str, Field(min_length=1)] = "AdamW"
    """A class of torch.optim, such as AdamW, SGD or Muon (bench/training/optimizers.py)."""
    options: dict[str, bool | int | float | str] = Field(default={})
    """Further arguments of the class, such as momentum."""
    lr: Annotated[float, Field(gt=0, le=100)] = 3e-4
    """Learning rate."""
    lr_end: UnitInterval = 1.0
    """Multiplier of the learning rate at the end of the budget, reached linearly."""
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Annotated[float, Field(gt=0, le=100)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=100)] = 1e-4
    clip: Positive = 1.0
    """Maximum norm of the gradient."""


KINDS_OF_LORA = ("dora", "rank_stabilised", "ranks", "alphas")
"""Settings of the student's adapter that plain LoRA does not have."""


class LoraSpec(Settings):
    """The student's LoRA adapter."""

    rank: Annotated[int, Field(gt=0, le=4096)] = 32
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 64.0
    targets: Targets | None = None
    """Suffixes of the names of the adapted layers; None means the published set (every attention projection)."""
    start: Annotated[str, Field(min_length=1)] | None = None
    """Adapter of the same rank and alpha to initialise the student from (a folder or hub:OWNER/REPO/FOLDER); None means
    that the student starts as the base."""
    dora: bool = False
    """Whether every layer also has a trained magnitude (DoRA, arXiv 2402.09353)."""
    rank_stabilised: bool = False
    """Whether the scale is alpha / sqrt(rank) and not alpha / rank (rsLoRA, arXiv 2312.03732)."""
    ranks: dict[str, Annotated[int, Field(gt=0, le=4096)]] = Field(default={})
    """Suffix of layers' names -> their rank, where it is another one."""
    alphas: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default={})
    """Suffix of layers' names -> their alpha, where it is another one."""

    @property
    def plain(self) -> bool:
        """Whether all layers have the rank and scale of plain LoRA."""
        return not any(getattr(self, name) for name in KINDS_OF_LORA)


class EmaSpec(Settings):
    """Moving average of the student's weights, which is evaluated and kept as the result (bench/training/ema.py)."""

    decay: Decay = 0.9
    """The largest decay; the warm-up starts at 0.1."""
    every: Annotated[int, Field(gt=0)] = 8
    """Number of optimiser steps between updates of the average."""


CHOICE = "validation"
"""The split on which guidance scales are chosen, whatever the scores are on (evaluation.guidance_grid)."""
LATER_IN_EVALUATION = ("pictures", "shift", "table", "resolution", "stop_on_alarm", "guidance_grid")
"""Settings of evaluations that the first records do not have."""


class EvaluationSpec(Settings):
    """Held-out evaluation of the EMA student with the deterministic Euler sampler."""

    steps: Steps = 40
    """Number of sampling steps."""
    guidance: Guidance | None = None
    """Guidance scale; None means the one used in training (sampler.guidance)."""
    shift: Shift | None = None
    """Timestep shift; None means sampler.shift, or else the backbone's."""
    table: Table | None = None
    """Table of sigmas; None means sampler.table."""
    points: Annotated[tuple[UnitInterval, ...], Field(max_length=1000)] = (0.5, 1.0)
    """Fractions of the budget at which to evaluate. The end of the budget is always evaluated."""
    resolution: Annotated[int, Field(gt=0)] | None = None
    """Image pixels along one side; None means compute.resolution."""
    batch: Annotated[int, Field(gt=0)] = 96
    """Number of images drawn together."""
    split: Literal["validation", "test"] = "test"
    """Choose settings on validation prompts, and report results on test prompts. (The shipped teachers on micro predate
    the validation split and were chosen without it.)"""
    pictures: bool = False
    """Whether to keep the images of the final evaluation in GenEval's official layout under pictures/<task>, and those
    of the base and the teachers in the cache of the results folder."""
    guidance_grid: Annotated[tuple[Guidance, ...], Field(max_length=100)] = ()
    """Guidance scales from which the final scores of every model (student, base, teachers) on every task take their own
    best one, chosen on validation prompts. Empty: the student is scored at `guidance`, the base at its best known scale
    and teachers at theirs. Scores along training stay at `guidance`."""
    stop_on_alarm: bool = False
    """Whether to end the run at the first evaluation point at which the reward of a task has risen since an earlier
    point while its stricter score, known utility or diversity fell (bench/analysis/alarms.py). Needs validation
    prompts."""

    @model_validator(mode="after")
    def _stops_on_validation(self) -> "EvaluationSpec":
        if self.stop_on_alarm and self.split == "test":
            raise ValueError(
                "evaluation.stop_on_alarm would choose the end of training by the test prompts: set "
                "evaluation.split=validation too, and score the student on test prompts with bench eval"
            )
        return self

    @model_validator(mode="after")
    def _ascends(self) -> "EvaluationSpec":
        if list(self.guidance_grid) != sorted(set(self.guidance_grid)):
            shown = ", ".join(f"{scale:g}" for scale in self.guidance_grid)
            raise ValueError(f"evaluation.guidance_grid lists each scale once, in ascending order, not {shown}")
        if len(self.guidance_grid) == 1:
            raise ValueError("evaluation.guidance_grid needs two scales or more; set evaluation.guidance to fix one")
        return self

    @property
    def scale(self) -> float:
        """The guidance scale of a resolved spec, in which it is never None."""
        assert self.guidance is not None, "the spec is not resolved"
        return self.guidance

    def build(self, levels: Levels, embedded_guidance: bool = False) -> Sampler:
        """The deterministic Euler sampler of every evaluation of a backbone with these noise levels."""
        return euler(levels, self.steps, self.table or SamplerSpec().table, self.shift, embedded_guidance)


class ProbesSpec(Settings):
    """Measurements at the evaluation points besides scores. Their cost does not count towards the training budget."""

    interference: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Number of gradient estimates per half for the cosines between tasks' gradients; 0 disables the measurement."""


class Spec(Settings):
    """The complete specification of a run. Specs that differ only in `seed` have the same hash."""

    method: str
    """Name of a registered method."""
    backbone: str = "micro"
    """Name of a registered backbone, or the path or hub address of a pipeline."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    budget: BudgetSpec = BudgetSpec(updates=100)
    sampler: SamplerSpec = SamplerSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    lora: LoraSpec = LoraSpec()
    full_finetuning: bool = False
    """Whether to train all weights of the network instead of a LoRA adapter; `lora` then has no effect. The student,
    its average and the optimizer's state are float32 copies of the network."""
    ema: EmaSpec = EmaSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    probes: ProbesSpec = ProbesSpec()
    teachers: dict[str, str] = Field(default={})
    """task -> 'shipped', 'train' or a folder with a PEFT adapter; only for methods that need teachers."""
    teacher_guidance: dict[str, Guidance] = Field(default={})
    """task -> guidance scale of its teacher. The default is the scale at which the teacher's run was evaluated, or the
    student's scale if the folder is not the adapter of a run."""
    scorers: dict[str, dict[str, str]] = Field(default={})
    """task -> settings of its scorer, where the backbone's world leaves a choice; see `bench list tasks`."""
    rewards: dict[str, dict[str, Moderate]] = Field(default={})
    """task -> scorer -> weight: further scorers, named like their tasks, that score the images of this task's prompts.
    The task's own reward has weight 1 unless set; its reward is the weighted sum (see params.reward_set)."""
    compute: Compute = Compute()
    checkpoint_every: Annotated[int, Field(gt=0)] = 25
    """Number of updates between checkpoints."""
    device: DeviceName = "cpu"
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(_one_or_more)] = ()
    """Where to mirror metrics and held-out scores while the run trains, with its images if evaluation.pictures keeps
    them (bench/training/tracking.py). Changes nothing in the run and is not part of its hash."""
    params: dict[str, Any] = Field(default={})
    """Options of the method, which validates them."""

    @property
    def evaluation_compute(self) -> Compute:
        """`compute` at the resolution of held-out evaluations."""
        resolution = self.evaluation.resolution or self.compute.resolution
        return self.compute.model_copy(update={"resolution": resolution})

    def digest(self, backbone_hash: str) -> str:
        """Hash that identifies the run apart from its seed: its settings and the hash of the backbone's weights."""
        settings = self.without_placement().record()
        settings.pop("seed")
        # The hashes of stored runs were computed when `nfe` was called `evaluations`.
        settings["budget"]["evaluations"] = settings["budget"].pop("nfe")
        if self._averages_rarely:
            # ema.every used to count updates; runs in which that makes a difference need a different hash.
            settings["ema"]["every_counts"] = "optimiser steps"
        return text_hash({"spec": settings, "backbone": backbone_hash})

    @property
    def _averages_rarely(self) -> bool:
        """Whether the average is updated less often than once per optimiser step, or an update has several steps."""
        method = find("method", self.method)
        inner = method(method.Options.model_validate(self.params)).inner_updates
        return method.trains and (self.ema.every > 1 or inner > 1)

    def too_short(self, updates: int) -> str:
        """A warning if a run of this many updates ends before the weights are averaged for the first time, else ""."""
        method = find("method", self.method)
        steps = updates * method(method.Options.model_validate(self.params)).inner_updates
        if not method.trains or steps >= self.ema.every:
            return ""
        return (
            f"ema.every={self.ema.every} exceeds the {steps} optimiser steps of this run, so the averaged weights, "
            "which are evaluated and kept, never change from their start; --set ema.every=1 averages at every step"
        )

    def without_placement(self) -> "Spec":
        """The spec with settings at their defaults that only decide in what portions, or where, to compute.

        These are most of `compute`, evaluation.batch, and each scorer's device, batch and url; `device` is kept. They
        change results by rounding only, so that a run that ran out of memory can resume with others. `trackers`, which
        changes nothing, is among them.
        """
        compute = Compute(**self.compute.model_dump(include=set(Compute.RESULT)))
        default_batch = EvaluationSpec.model_fields["batch"].default
        evaluation = self.evaluation.model_copy(update={"batch": default_batch})
        update: dict[str, Any] = {"compute": compute, "scorers": measuring(self.scorers), "evaluation": evaluation}
        update["trackers"] = ()
        return self.model_copy(update=update)

    def record(self) -> dict[str, Any]:
        """Plain data for spec.json. Settings that were added after the first records are omitted at their defaults."""
        evaluation, compute, lora, optimizer = self.evaluation, self.compute, self.lora, self.optimizer
        silent = {"name": optimizer.name == "AdamW", "options": not optimizer.options}
        # For each section, True omits the entire section and a set omits the settings that it names.
        omitted: dict[str, Any] = {
            "scorers": self.scorers == SILENT["scorers"] or set(),
            "rewards": self.rewards == SILENT["rewards"] or set(),
            "compute": compute == SILENT["compute"] or compute.model_dump().keys() - compute.record(),
            "lora": self.full_finetuning or {name for name in ("start", *KINDS_OF_LORA) if not getattr(lora, name)},
            "full_finetuning": not self.full_finetuning or set(),
            "trackers": not self.trackers or set(),
            "optimizer": {name for name, is_silent in silent.items() if is_silent},
            "evaluation": {name for name in LATER_IN_EVALUATION if not getattr(evaluation, name)},
        }
        options = find("method", self.method).Options.model_validate(self.params)
        return self.model_dump(mode="json", exclude=omitted) | {"params": options.record()}

    def with_seed(self, seed: int) -> "Spec":
        """The same specification with a different seed."""
        return self.model_copy(update={"seed": seed})


SILENT = {name: field.default for name, field in Spec.model_fields.items()}
"""Default of every setting and section."""
