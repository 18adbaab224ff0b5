"""The schedulers of flow-matching models that are followed, and the timestep shift that they say.

Sigmas are those of diffusers' FlowMatchEulerDiscreteScheduler with a timestep shift (bench/sampler/schedule.py), which
is fixed or follows from the number of an image's tokens, or those of its DPMSolverMultistepScheduler with flow sigmas.
With any other scheduler, diffusers would generate different images from ours, so it is rejected with the name of the
field at fault.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bench.backbones.scheduler_files import fields_of, refuse, require, scheduler_config
from bench.config.bounds import Shift
from bench.errors import UsageError

EULER, DPM = "FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"
DEFAULT_SHIFT = 1.0
"""Timestep shift of diffusers' classes if the file gives none."""
NOT_FOLLOWED = (
    "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "stochastic_sampling",
)  # fmt: skip
"""Options of diffusers' classes that change the sigmas or the sampling step, and that are not implemented here."""
SOLVER: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("flow_prediction",), "algorithm_type": ("dpmsolver", "dpmsolver++"),
    "solver_type": ("midpoint",), "final_sigmas_type": ("zero",), "use_flow_sigmas": (True,),
}  # fmt: skip
"""Option of the solver with flow sigmas -> the values that are followed."""
SOLVER_DEFAULTS = {"prediction_type": "epsilon", "use_flow_sigmas": False}
"""Its defaults in diffusers that are not followed."""
SHIFT_LIMITS = {"shift": "not a number from 0.01 to 100"}


class SchedulerFields(BaseModel):
    """The fields of a scheduler_config.json that are read, with the defaults of diffusers' class and pipelines."""

    model_config = ConfigDict(strict=True)
    shift: Shift = DEFAULT_SHIFT
    use_dynamic_shifting: bool = False
    base_shift: Annotated[float, Field(ge=-10, le=10)] = 0.5
    max_shift: Annotated[float, Field(ge=-10, le=10)] = 1.15
    base_image_seq_len: Annotated[int, Field(gt=0)] = 256
    max_image_seq_len: Annotated[int, Field(gt=0)] = 4096
    shift_terminal: Annotated[float, Field(gt=0, lt=1)] | None = None
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    table: Literal["dpm"] | None = None
    """The table of sigmas, where it follows from the scheduler and not from the pipeline."""


def flow_scheduler_in(path: Path, kinds: tuple[str, ...] = (EULER,)) -> SchedulerFields:
    """What a scheduler_config.json says, of a class of `kinds`. Raises UsageError for one that is not supported."""
    kind, config = scheduler_config(path, kinds)
    refuse(path, config, NOT_FOLLOWED)
    if kind == DPM:
        refuse(path, config, ["use_lu_lambdas", "thresholding", "use_dynamic_shifting"])
        given = {name: value for name, value in config.items() if value is not None}
        require(path, kind, SOLVER_DEFAULTS | given, SOLVER)
        told = {"shift": config.get("flow_shift", DEFAULT_SHIFT), "table": "dpm"}
        return fields_of(path, told, SchedulerFields, SHIFT_LIMITS)
    refuse(path, config, ["use_flow_sigmas"])
    # An option that is null has its default; a terminal of 0 is none. Only the class decides the table.
    told = {name: value for name, value in config.items() if (value is not None or name == "shift") and name != "table"}
    if not told.get("shift_terminal"):
        told.pop("shift_terminal", None)
    return fields_of(path, told, SchedulerFields, SHIFT_LIMITS)


def shift_for(scheduler: SchedulerFields, tokens: int) -> float:
    """The timestep shift for images of so many tokens, as diffusers' `calculate_shift` and scheduler compute it.

    With dynamic shifting mu is linear in the number of tokens, and sigma becomes e^mu / (e^mu + 1 / sigma - 1), the
    shift of SD3 (arXiv 2403.03206, Eq. 23) by e^mu, or by mu if time_shift_type is linear.
    """
    if not scheduler.use_dynamic_shifting:
        return scheduler.shift
    least, most = scheduler.base_image_seq_len, scheduler.max_image_seq_len
    if least >= most:
        raise UsageError(f"the scheduler's base_image_seq_len {least} must be less than its max_image_seq_len {most}")
    slope = (scheduler.max_shift - scheduler.base_shift) / (most - least)
    mu = tokens * slope + scheduler.base_shift - slope * least
    return math.exp(mu) if scheduler.time_shift_type == "exponential" else mu
