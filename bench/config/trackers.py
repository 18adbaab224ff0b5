"""Names of the trackers that a run can be mirrored to (bench/training/tracking.py)."""

import importlib.util
from typing import Literal

from bench.errors import MissingError

Tracker = Literal["tensorboard", "wandb", "trackio", "swanlab", "mlflow"]


def check_trackers(names: tuple[Tracker, ...]) -> None:
    """Raise MissingError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            cure = f"pip install {name}, or leave it out of trackers"
            raise MissingError(f"the tracker {name!r} is not installed: {cure}")
