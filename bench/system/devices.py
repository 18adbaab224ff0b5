"""Names of devices: which there are, and which is best."""

import os
import re

from bench.errors import MissingError, UsageError
from bench.lazy import torch

NAMES = re.compile(r"cpu|cuda(?::([0-9]{1,4}))?")


def check_device(device: str, what: str, cure: str) -> None:
    """Raise UsageError for a name that is no device, MissingError, with the cure, for a GPU that is not there."""
    named = NAMES.fullmatch(device)
    if not named:
        raise UsageError(f"device of the {what}: {device!r} is none of cpu, cuda, cuda:0, ...")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise MissingError(f"the {what} is to be on {device!r} but torch sees no GPU{hidden()}: {cure}")
    if named[1] and int(named[1]) >= (count := torch.cuda.device_count()):
        there = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise MissingError(
            f"the {what} is to be on {device!r} but torch sees {there}{hidden()}: name one of these, or cuda"
        )


def hidden() -> str:
    """What CUDA_VISIBLE_DEVICES leaves to be seen, where it is set."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        "" if shown is None else f" (CUDA_VISIBLE_DEVICES is {shown!r}; GPUs are counted from 0 among those it shows)"
    )


def best_device() -> str:
    """Where networks run when a user says nothing and no run does either."""
    return "cuda" if torch.cuda.is_available() else "cpu"
