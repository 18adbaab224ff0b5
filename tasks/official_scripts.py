"""Instructions to judges, read from the user's copy of the official script instead of being repeated here."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from bench.errors import DamagedError, UsageError, one_line
from bench.system import files


@cache
def literal(script: Path, name: str) -> str:
    """The text that a Python script assigns to a variable or attribute `name`. The script is read, never run.

    Raises UsageError for a script that cannot be read, DamagedError for one without this text.
    """
    try:
        tree = ast.parse(files.read_text(script))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DamagedError(f"{script} is not the official script: {one_line(error)}") from error
    except OSError as error:
        raise UsageError(f"cannot read the official instructions: {one_line(error)}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for target in node.targets:
                if name in (getattr(target, "id", None), getattr(target, "attr", None)):
                    return node.value.value
    raise DamagedError(f"{script} is not the official script: it has no text {name}")
