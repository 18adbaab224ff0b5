"""Checks of device names, and the default device."""

import os
import re

from bench.errors import MissingError, UsageError
from bench.lazy import torch

NAMES = re.compile(r"cpu|cuda(?::([0-9]{1,4}))?")


def check_device(device: str, what: str, cure: str) -> None:
    """Check that a device exists.

    `what` names its user in messages, for example "backbone". Raises UsageError for an invalid name, and MissingError,
    with the advice `cure`, for a GPU that torch does not see.
    """
    named = NAMES.fullmatch(device)
    if not named:
        raise UsageError(f"device of the {what}: {device!r} is not one of cpu, cuda, cuda:0, ...")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise MissingError(f"the {what} needs {device!r}, but torch sees no GPU{hidden()}: {cure}")
    if not named[1]:
        return
    count = torch.cuda.device_count()
    if int(named[1]) >= count:
        seen = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise MissingError(f"the {what} needs {device!r}, but torch sees {seen}{hidden()}: name one of these, or cuda")


def hidden() -> str:
    """Explain, for an error message, how CUDA_VISIBLE_DEVICES limits the GPUs; empty if it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ""
    return f" (CUDA_VISIBLE_DEVICES is {visible!r}; GPUs are numbered from 0 among those it lists)"


def best_device() -> str:
    """Return the default device for networks if neither the user nor a run names one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
