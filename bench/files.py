"""Where results may lie, and writing files so that a kill never leaves half of one."""

import os
import secrets
from pathlib import Path

from bench.errors import UsageError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step: a kill leaves the old or the new content, never a mixture."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # two processes may write the same file
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def results_root(folder: Path) -> Path:
    """The folder that runs go to. Raises UsageError if a run folder would lie outside a results folder."""
    resolved = folder.resolve()
    if "results" not in (resolved.name, *(p.name for p in resolved.parents)):
        raise UsageError(f"runs must stay inside a folder named 'results', not {folder}")
    if resolved.exists() and not resolved.is_dir():
        raise UsageError(f"{folder} is not a folder")
    return resolved
