"""Writing files so that a kill never leaves half of one."""

import os
import secrets
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step: a kill leaves the old or the new content, never a mixture."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # two processes may write the same file
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
