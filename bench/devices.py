"""Names of devices: which there are, and which is best."""

import torch

from bench.errors import MissingError, UsageError


def check_device(device: str, what: str, cure: str) -> None:
    """Raise UsageError for a name that is no device, MissingError, with the cure, for a GPU that is not there."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"device of the {what}: {device!r} is none of cpu, cuda, cuda:0, ...") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise MissingError(f"the {what} is to be on {device!r} but torch sees no GPU: {cure}")


def best_device() -> str:
    """Where networks run when a user says nothing and no run does either."""
    return "cuda" if torch.cuda.is_available() else "cpu"
