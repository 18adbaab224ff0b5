"""What a pipeline's scheduler_config.json says of its sigmas, and what of it this project does not follow.

Sigmas are those of diffusers' FlowMatchEulerDiscreteScheduler with a fixed timestep shift (bench/sampler/schedule.py).
A scheduler that asks for anything else would draw other pictures in diffusers than here: it is refused, by the name of
the field that asks.
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
"""Of diffusers' class, where the file does not say."""
NOT_FOLLOWED = (
    "use_dynamic_shifting", "invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas",
    "use_beta_sigmas", "stochastic_sampling",
)  # fmt: skip


def shift_in(path: Path) -> float:
    """The timestep shift of a scheduler_config.json. Raises UsageError for a scheduler that is not followed."""
    try:
        config = read_config(path)
    except OSError as error:
        raise UsageError(f"the pipeline's scheduler cannot be read: {path}: {error.strerror}") from error
    for file, kind in ((path, config.get("_class_name", CLASS)), named_in(path.parent.parent / "model_index.json")):
        if kind != CLASS:
            said = f"the scheduler is {kind}; pipelines are sampled with {CLASS}: put its file in place"
            raise UsageError(f"{file}: {said}")
    for field in NOT_FOLLOWED:
        if config.get(field):
            raise UsageError(f"{path}: {field} is {config[field]!r}, which is not implemented: set it to false or null")
    if (trained := config.get("num_train_timesteps", TRAIN_TIMESTEPS)) != TRAIN_TIMESTEPS:
        raise UsageError(f"{path}: num_train_timesteps is {trained!r}; {TRAIN_TIMESTEPS} alone is implemented")
    shift = config.get("shift", DEFAULT_SHIFT)
    try:
        return TypeAdapter(Shift).validate_python(shift, strict=True)
    except ValidationError as error:
        raise UsageError(f"{path}: shift is {repr(shift)[:40]}, not a number from 0.01 to 100") from error


def named_in(index: Path) -> tuple[Path, object]:
    """A pipeline's index, and the scheduler's class that it names: diffusers builds that one."""
    entry = read_config(index).get("scheduler") if index.is_file() else None
    return index, entry[1] if isinstance(entry, list) and len(entry) == 2 else CLASS
