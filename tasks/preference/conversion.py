"""What commands have in common that convert a released checkpoint to a folder in transformers' format."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.errors import DamagedError
from bench.weights.checkpoints import cause_of
from bench.weights.frozen import save_folder


def save_converted(build: Callable[[], Any], checkpoint: Path, what: str, folder: Path) -> None:
    """Write the model that `build` makes of a checkpoint.

    Raises DamagedError if the checkpoint is not `what` it should be, UsageError if the folder cannot be written.
    """
    try:
        model = build()
    except KeyError as error:
        raise DamagedError(f"{checkpoint} is not a valid {what}: it lacks {error.args[0]!r}") from error
    except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise DamagedError(f"{checkpoint} is not a valid {what}: {cause_of(error)}") from error
    save_folder(model, folder)


def run_conversion(convert: Callable[[Path, Path], None], description: str, released: str) -> None:
    """Parse the command line CHECKPOINT FOLDER and convert; `released` says in its help what the checkpoint is."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkpoint", type=Path, help=released)
    parser.add_argument("folder", type=Path, help="folder for the converted model")
    arguments = parser.parse_args()
    convert(arguments.checkpoint, arguments.folder)
    print(f"converted: {arguments.folder}")
