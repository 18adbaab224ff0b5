"""Reading a pipeline's scheduler_config.json, and rejecting schedulers that are not supported.

Sigmas are those of diffusers' FlowMatchEulerDiscreteScheduler with a fixed timestep shift (bench/sampler/schedule.py).
With any other scheduler, diffusers would generate different images from ours, so it is rejected with the name of the
field at fault.
"""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.config.bounds import Shift
from bench.errors import UsageError
from bench.sampler.schedule import TRAIN_TIMESTEPS
from bench.weights.checkpoints import read_config

FILE = "scheduler/scheduler_config.json"
CLASS = "FlowMatchEulerDiscreteScheduler"
DEFAULT_SHIFT = 1.0
"""Timestep shift of diffusers' class if the file gives none."""
NOT_FOLLOWED = (
    "use_dynamic_shifting", "invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas", "stochastic_sampling",
)  # fmt: skip
"""Options of diffusers' class that change the sigmas or the sampling step, and that are not implemented here."""


def shift_in(path: Path) -> float:
    """The timestep shift in a scheduler_config.json. Raises UsageError for a scheduler that is not supported."""
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
    shift = config.get("shift", DEFAULT_SHIFT)
    try:
        return TypeAdapter(Shift).validate_python(shift, strict=True)
    except ValidationError as error:
        raise UsageError(f"{path}: shift is {repr(shift)[:40]}, not a number from 0.01 to 100") from error


def named_in(index: Path) -> tuple[Path, object]:
    """The path of a pipeline's index and the scheduler class that it names, which is the one diffusers builds."""
    entry = read_config(index).get("scheduler") if index.is_file() else None
    return index, entry[1] if isinstance(entry, list) and len(entry) == 2 else CLASS
