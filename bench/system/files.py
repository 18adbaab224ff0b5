"""Files: where results may be stored, reading text and JSON that may be damaged, and atomic writing.

All text is UTF-8 regardless of the locale, and only a line feed ends a line: str.splitlines would also split at U+2028,
U+0085 or a vertical tab, which prompts may contain.
"""

import errno
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from bench.errors import DamagedError, UsageError, one_line

TEMPORARY = ".tmp"
PASSED = re.compile(r"/dev/(null|stdin|fd/[0-9]+)|/proc/self/fd/[0-9]+")
"""Paths under which a shell passes open files to a command (`<(...)`). They are read to their end, even from a pipe."""


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading bytes.

    Raises DamagedError for a folder, and for a pipe or device, from which reading might block or never end. Raises
    OSError if the file cannot be read.
    """
    if PASSED.fullmatch(str(path)):
        return path.open("rb")
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(number).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(number, "rb")
    os.close(number)
    raise DamagedError(f"{path} is {_what(kind)}, not a file")


def _what(kind: int) -> str:
    return "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"


def is_there(path: Path) -> bool:
    """Return whether a path exists, also as a broken link. Raises OSError if that cannot be determined."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_file(path: Path) -> bool:
    """Return whether a file exists.

    Raises DamagedError for anything else, such as a folder, a pipe or a broken link, and OSError if that cannot be
    determined. Neither may be taken for a file that was never written.
    """
    if not is_there(path):
        return False
    try:
        kind = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        link = "a link to itself" if error.errno == errno.ELOOP else "a broken link"
        raise DamagedError(f"{path} is {link}") from error
    if not stat.S_ISREG(kind):
        raise DamagedError(f"{path} is {_what(kind)}, not a file")
    return True


def read_text(path: Path, length: int = -1) -> str:
    """Read a UTF-8 text file, or its first `length` bytes, without its byte order mark.

    Raises DamagedError if it is not a file or not UTF-8, OSError if it cannot be read.
    """
    with open_file(path) as file:
        content = file.read(length)
    if _is_wide(content):
        raise DamagedError(f"{path} is not UTF-8 text: it looks like UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _is_wide(content: bytes) -> bool:
    """Return whether bytes look like UTF-16: by the byte order mark, or by zeros in mostly every second byte."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    even, odd = content[::2].count(0), content[1::2].count(0)
    few, many = sorted((even, odd))
    return many > len(content) / 4 and few < many / 8


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 text file, which end in a line feed or in carriage return and line feed.

    Raises what `read_text` raises, and DamagedError for zero bytes, which do not occur in text.
    """
    text = read_text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DamagedError(
            f"{path}, line {line} contains zero bytes: it is not text, or it is UTF-16; save it as UTF-8"
        )
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises DamagedError for invalid JSON, OSError if the file cannot be read."""
    return parse_json(read_text(path), str(path))


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains an object. Raises DamagedError if it does not, OSError if it cannot be read."""
    return _an_object(read_json(path), str(path))


def read_rows(path: Path, length: int = -1) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file, or of its first `length` bytes, skipping empty lines.

    Text after the last line feed is ignored unless it is a complete object: it is a line that is still being written or
    that was cut off. Raises DamagedError for a line that is not an object, OSError if the file cannot be read.
    """
    text = read_text(path, length)
    lines = text.split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            rows.append(_an_object(parse_json(line, where), where))
        except DamagedError:
            # Only the last line may be incomplete.
            if number < len(lines):
                raise
    return rows


def parse_json(text: str, where: str) -> Any:
    """Parse JSON text. `where` names its source in errors.

    Raises DamagedError for invalid JSON, and for a repeated key, because readers differ in which value they take.
    """
    try:
        return json.loads(text, object_pairs_hook=partial(_each_once, where))
    except (ValueError, RecursionError) as error:
        cause = "it is empty" if not text.strip("\0 \r\n\t") else one_line(error)
        raise DamagedError(f"{where} is not JSON: {cause}") from error


def _each_once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object from its pairs. Raises DamagedError for a repeated key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DamagedError(f"{where} gives the key {one_line(ValueError(twice))!r} twice")
    return found


def _an_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedError(f"{where} contains a value of type {type(value).__name__}, not a JSON object")
    return value


def json_bytes(value: Any) -> bytes:
    """Return JSON in the format of records: ASCII, indented by one space, ending in a line feed."""
    return (json.dumps(value, indent=1) + "\n").encode()


@contextmanager
def described(path: Path) -> Iterator[None]:
    """Turn errors of reading a file's values in the block into a DamagedError that names the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise DamagedError(f"{path} has invalid contents: {what}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put a path into OSErrors of the block, which may otherwise name no file or only a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step: after a kill it has either the old or the new content.

    If the file is a link, its target is replaced. Raises OSError naming the file, and leaves nothing behind, if it
    cannot be written, and for a pipe or device: writing to it might block, and replacing it would break its users.
    """
    with naming(path):
        target = Path(os.path.realpath(path))
        if is_special(target):
            raise FileExistsError(errno.EEXIST, "it is a pipe or a device, not a file")
        # Two processes may write the same file, so the temporary name is random.
        temporary = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}{TEMPORARY}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def is_special(path: Path) -> bool:
    """Return whether a path is a pipe or a device. Raises OSError if that cannot be determined."""
    return path.exists() and not path.is_file() and not path.is_dir()


def remove_leftovers(folder: Path, older_than_s: float = 0) -> None:
    """Delete the temporary files of killed writers in a folder.

    With an age of 0 the caller must be the only writer, because a file of a running writer would be deleted, too.
    """
    for path in folder.glob(f".*{TEMPORARY}"):
        try:
            if path.is_file() and time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink(missing_ok=True)
        # A different user's file in a shared folder cannot be deleted, but does no harm.
        except OSError:
            continue


def results_root(folder: Path) -> Path:
    """Return the absolute path of the folder for runs. Raises UsageError unless it is in a folder named results.

    Either the path as given or its target must contain `results`, which may thus be a link to a different disk. For a
    path with `..` only the target counts, because such a path may leave the folders that it names.
    """
    named = Path(_here()) / folder
    try:
        resolved = folder.resolve()
        exists, is_folder = resolved.exists(), resolved.is_dir()
        broken = [place for place in (named, *named.parents) if place.is_symlink() and not place.exists()]
    # A link to itself raises RuntimeError.
    except (OSError, RuntimeError) as error:
        raise UsageError(f"cannot resolve {folder}: {one_line(error)}") from error
    if broken:
        raise UsageError(f"{broken[-1]} is a broken link: create its target or remove the link")
    if exists and not is_folder:
        raise UsageError(f"{folder} is not a folder")
    if ".." not in named.parts and "results" in named.parts:
        return named
    if "results" not in resolved.parts:
        raise UsageError(f"runs must be inside a folder named 'results', not {folder}")
    return resolved


def _here() -> str:
    """Return the current folder as the shell names it, in which links are not resolved."""
    named = os.environ.get("PWD", "")
    try:
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    except OSError:
        pass
    return os.getcwd()
