"""Reading a pipeline's scheduler_config.json, for the readers of the kinds of schedulers that are followed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from bench.errors import MissingError, UsageError
from bench.sampler.schedule import TRAIN_TIMESTEPS
from bench.weights.checkpoints import read_config

FILE = "scheduler/scheduler_config.json"
Fields = TypeVar("Fields", bound=BaseModel)


def scheduler_config(path: Path, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The class of a pipeline's scheduler, one of `kinds`, and its configuration.

    Raises UsageError for another class, and for another number of timesteps than 1000; MissingError without a file.
    """
    try:
        config = read_config(path)
    except OSError as error:
        raise MissingError(f"the pipeline's scheduler cannot be read: {path}: {error.strerror}") from error
    # The index is checked too, since diffusers builds the class that it names, whatever the scheduler's file says.
    index = path.parent.parent / "model_index.json"
    in_file, in_index = config.get("_class_name", kinds[0]), _named_in(index)
    for file, kind in ((path, in_file), (index, in_index)):
        if kind is not None and kind not in kinds:
            supported = f"only {kinds[0]} is supported" if len(kinds) == 1 else f"supported are {', '.join(kinds)}"
            raise UsageError(f"{file}: the scheduler is {str(kind)[:80]}; {supported}: use a configuration for it")
    trained = config.get("num_train_timesteps", TRAIN_TIMESTEPS)
    if trained != TRAIN_TIMESTEPS:
        raise UsageError(f"{path}: num_train_timesteps is {trained!r}; only {TRAIN_TIMESTEPS} is supported")
    return in_index or in_file, config


def refuse(path: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise UsageError if one of these options is set, because it is not implemented."""
    for name in names:
        if config.get(name):
            raise UsageError(f"{path}: {name} is {config[name]!r}, which is not implemented: set it to false or null")


def require(path: Path, kind: str, config: Mapping[str, Any], followed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise UsageError if an option of a class has another value than those that are followed; null is its default."""
    for name, values in followed.items():
        if config.get(name) is not None and config[name] not in values:
            only = " or ".join(map(repr, values))
            raise UsageError(f"{path}: {name} is {config[name]!r}; of {kind} only {only} is supported")


def fields_of(path: Path, told: Mapping[str, Any], kind: type[Fields], limits: Mapping[str, str]) -> Fields:
    """The fields of a configuration. Raises UsageError for an invalid one, with its `limits` in words where known."""
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, found = str(first["loc"][0]), repr(first["input"])[:40]
        raise UsageError(f"{path}: {name} is {found}, {limits.get(name, first['msg'])}") from error


def _named_in(index: Path) -> Any:
    """The scheduler class that a pipeline's index names, which is the one diffusers builds; None if there is none."""
    entry = read_config(index).get("scheduler") if index.is_file() else None
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None
