"""Files: where results may lie, reading text and JSON that may be damaged, and writing so that a kill leaves no half.

Everything here is UTF-8 whatever the locale says, and lines end in a line feed alone: str.splitlines would also cut at
U+2028, U+0085 or a vertical tab, which prompts may hold.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from bench.errors import DamagedError, UsageError, one_line

TEMPORARY = ".tmp"


def read_text(path: Path) -> str:
    """A UTF-8 text file without its byte order mark. Raises DamagedError if it is not UTF-8, OSError if unreadable."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, cut at line feeds alone; a carriage return before one is dropped with it."""
    lines = read_text(path).split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DamagedError naming the file, OSError if it cannot be read."""
    return parse_json(read_text(path), str(path))


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises DamagedError for anything else, OSError if it cannot be read."""
    return _an_object(read_json(path), str(path))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, one a line; empty lines are passed over.

    What follows the last line feed is a line that is still being written, or was cut off, unless it is whole. Raises
    DamagedError naming the line that is no object, OSError if the file cannot be read.
    """
    text = read_text(path)
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            rows.append(_an_object(parse_json(line, where), where))
        except DamagedError:
            if number < len(lines):
                raise
    return rows


def parse_json(text: str, where: str) -> Any:
    """The value of JSON text. Raises DamagedError, saying `where` it stands, for anything else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        cause = "it is empty" if not text.strip("\0 \r\n\t") else one_line(error)
        raise DamagedError(f"{where} is not JSON: {cause}") from error


def _an_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedError(f"{where} holds {type(value).__name__}, not a JSON object")
    return value


def json_bytes(value: Any) -> bytes:
    """JSON as records are written: ASCII, indented by one, ending in a line feed."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step: a kill leaves the old or the new content, never a mixture.

    Raises OSError, and leaves nothing behind, if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")  # two processes may write the same
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left half-written in a folder; the caller must be the only one who writes there."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def results_root(folder: Path) -> Path:
    """The folder that runs go to. Raises UsageError if a run folder would lie outside a results folder."""
    resolved = folder.resolve()
    if "results" not in (resolved.name, *(p.name for p in resolved.parents)):
        raise UsageError(f"runs must stay inside a folder named 'results', not {folder}")
    if resolved.exists() and not resolved.is_dir():
        raise UsageError(f"{folder} is not a folder")
    return resolved
