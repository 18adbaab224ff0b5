"""Reading a pipeline's scheduler_config.json, and rejecting schedulers that are not supported.

Sigmas are those of diffusers' FlowMatchEulerDiscreteScheduler with a timestep shift (bench/sampler/schedule.py), which
is fixed or follows from the number of an image's tokens. With any other scheduler, diffusers would generate different
images from ours, so it is rejected with the name of the field at fault.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.config.bounds import Shift
from bench.errors import UsageError
from bench.sampler.schedule import TRAIN_TIMESTEPS
from bench.weights.checkpoints import read_config

FILE = "scheduler/scheduler_config.json"
CLASS = "FlowMatchEulerDiscreteScheduler"
DEFAULT_SHIFT = 1.0
"""Timestep shift of diffusers' class if the file gives none."""
NOT_FOLLOWED = (
    "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "stochastic_sampling", "use_flow_sigmas",
)  # fmt: skip
"""Options of diffusers' class that change the sigmas or the sampling step, and that are not implemented here."""


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


def shift_in(path: Path) -> float:
    """The timestep shift in a scheduler_config.json, of a pipeline in which it does not depend on the resolution.

    Raises UsageError for a scheduler that is not supported.
    """
    fields = scheduler_in(path)
    if fields.use_dynamic_shifting:
        raise UsageError(f"{path}: use_dynamic_shifting is True, which is not implemented: set it to false or null")
    if fields.shift_terminal:
        raise UsageError(
            f"{path}: shift_terminal is {fields.shift_terminal}, which is not implemented: set it to false or null"
        )
    return fields.shift


def scheduler_in(path: Path) -> SchedulerFields:
    """What a scheduler_config.json says. Raises UsageError for a scheduler that is not supported."""
    try:
        config = read_config(path)
    except OSError as error:
        raise UsageError(f"the pipeline's scheduler cannot be read: {path}: {error.strerror}") from error
    # The index is checked too, since diffusers builds the class that it names, whatever the scheduler's file says.
    in_index = named_in(path.parent.parent / "model_index.json")
    for file, kind in ((path, config.get("_class_name", CLASS)), in_index):
        if kind != CLASS:
            raise UsageError(f"{file}: the scheduler is {kind}; only {CLASS} is supported: use a configuration for it")
    for field in NOT_FOLLOWED:
        if config.get(field):
            raise UsageError(f"{path}: {field} is {config[field]!r}, which is not implemented: set it to false or null")
    trained = config.get("num_train_timesteps", TRAIN_TIMESTEPS)
    if trained != TRAIN_TIMESTEPS:
        raise UsageError(f"{path}: num_train_timesteps is {trained!r}; only {TRAIN_TIMESTEPS} is supported")
    # An option that is null has its default; a terminal of 0 is none.
    told = {name: value for name, value in config.items() if value is not None or name == "shift"}
    if not told.get("shift_terminal"):
        told.pop("shift_terminal", None)
    try:
        return SchedulerFields.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, found = first["loc"][0], repr(first["input"])[:40]
        limits = "not a number from 0.01 to 100" if name == "shift" else first["msg"]
        raise UsageError(f"{path}: {name} is {found}, {limits}") from error


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


def named_in(index: Path) -> tuple[Path, object]:
    """The path of a pipeline's index and the scheduler class that it names, which is the one diffusers builds."""
    entry = read_config(index).get("scheduler") if index.is_file() else None
    return index, entry[1] if isinstance(entry, list) and len(entry) == 2 else CLASS
