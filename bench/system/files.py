"""Files: where results may lie, reading text and JSON that may be damaged, and writing so that a kill leaves no half.

Everything here is UTF-8 whatever the locale says, and lines end in a line feed alone: str.splitlines would also cut at
U+2028, U+0085 or a vertical tab, which prompts may hold.
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
"""What a shell hands to a command under a name (`<(...)`): read to its end, whatever it is."""


def open_file(path: Path) -> BinaryIO:
    """A file, open for reading its bytes.

    Raises DamagedError for a folder, a pipe or a device, on which reading could wait, or go on, for ever; OSError if it
    cannot be read.
    """
    if PASSED.fullmatch(str(path)):
        return path.open("rb")
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(number).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(number, "rb")
    os.close(number)
    raise DamagedError(f"{path} is {_what(kind)}, not a file")


def _what(kind: int) -> str:
    return "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"


def is_there(path: Path) -> bool:
    """Whether anything is there, a link that leads nowhere too. Raises OSError where it cannot be looked at."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_file(path: Path) -> bool:
    """Whether a file is there.

    Raises DamagedError for anything else in its place, as a folder, a pipe, or a link that leads nowhere, and OSError
    where it cannot be looked at: neither is a file that was never written.
    """
    if not is_there(path):
        return False
    try:
        kind = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise DamagedError(f"{path} is a link that leads {_where(error)}") from error
    if not stat.S_ISREG(kind):
        raise DamagedError(f"{path} is {_what(kind)}, not a file")
    return True


def _where(error: OSError) -> str:
    return "to itself" if error.errno == errno.ELOOP else "nowhere"


def read_text(path: Path, length: int = -1) -> str:
    """A UTF-8 text file, or its first bytes, without its byte order mark.

    Raises DamagedError if it is no file or not UTF-8, OSError if it cannot be read.
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
    """Whether text has two bytes a character: by its mark, or by zeros in every second place alone."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    few, many = sorted(half.count(0) for half in (content[::2], content[1::2]))
    return many > len(content) / 4 and few < many / 8


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, cut at line feeds alone; a carriage return before one is dropped with it.

    Raises as `read_text`, and DamagedError for zero bytes, which text has none of.
    """
    text = read_text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DamagedError(f"{path}, line {line} holds zero bytes: this is no text, or it looks like UTF-16")
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DamagedError naming the file, OSError if it cannot be read."""
    return parse_json(read_text(path), str(path))


def read_record(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises DamagedError for anything else, OSError if it cannot be read."""
    return _an_object(read_json(path), str(path))


def read_rows(path: Path, length: int = -1) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file, or of its first bytes, one a line; empty lines are passed over.

    What follows the last line feed is a line that is still being written, or was cut off, unless it is whole. Raises
    DamagedError naming the line that is no object, OSError if the file cannot be read.
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
            if number < len(lines):
                raise
    return rows


def parse_json(text: str, where: str) -> Any:
    """The value of JSON text. Raises DamagedError, saying `where` it stands, for anything else, and for a key that is
    given twice: readers differ in which value they take."""
    try:
        return json.loads(text, object_pairs_hook=partial(_each_once, where))
    except (ValueError, RecursionError) as error:
        cause = "it is empty" if not text.strip("\0 \r\n\t") else one_line(error)
        raise DamagedError(f"{where} is not JSON: {cause}") from error


def _each_once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DamagedError(f"{where} gives the key {one_line(ValueError(twice))!r} twice")
    return found


def _an_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DamagedError(f"{where} holds {type(value).__name__}, not a JSON object")
    return value


def json_bytes(value: Any) -> bytes:
    """JSON as records are written: ASCII, indented by one, ending in a line feed."""
    return (json.dumps(value, indent=1) + "\n").encode()


@contextmanager
def described(path: Path) -> Iterator[None]:
    """Read what a file should hold: whatever is not there, or of another kind, raises DamagedError naming the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise DamagedError(f"{path} does not hold what it should: {what}") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError that comes from writing a file names it; the system's own names none, or a temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file in one step: a kill leaves the old or the new content, never a mixture.

    Raises OSError naming the file, and leaves nothing behind, if it cannot be written. A link stays one: what it leads
    to is replaced. A device or a pipe is refused: writing to it could wait for ever, and replacing it breaks others.
    """
    with naming(path):
        target = Path(os.path.realpath(path))
        if is_special(target):
            raise FileExistsError(errno.EEXIST, "it is a pipe or a device, not a file")
        # Two processes may write the same.
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
    """Whether a pipe or a device is there. Raises OSError where it cannot be looked at."""
    return path.exists() and not path.is_file() and not path.is_dir()


def remove_leftovers(folder: Path, older_than_s: float = 0) -> None:
    """Delete what killed writers left half-written in a folder; without an age the caller must be the only writer."""
    for path in folder.glob(f".*{TEMPORARY}"):
        try:
            if path.is_file() and time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink(missing_ok=True)
        except OSError:  # another's, in a shared folder: it takes room and does no harm
            continue


def results_root(folder: Path) -> Path:
    """The folder that runs go to, absolute. Raises UsageError if a run folder would lie outside a results folder.

    The path as it is named counts, so that `results` may be a link to another disk, and so does where it leads; but a
    path with `..` may leave what it has named, so that only where it leads counts.
    """
    named = Path(_here()) / folder
    try:
        resolved = folder.resolve()
        exists, is_folder = resolved.exists(), resolved.is_dir()
        lost = [place for place in (named, *named.parents) if place.is_symlink() and not place.exists()]
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise UsageError(f"{folder} cannot be followed: {one_line(error)}") from error
    if lost:
        raise UsageError(f"{lost[-1]} is a link that leads nowhere: make what it leads to, or take it away")
    if exists and not is_folder:
        raise UsageError(f"{folder} is not a folder")
    if ".." not in named.parts and "results" in named.parts:
        return named
    if "results" not in resolved.parts:
        raise UsageError(f"runs must stay inside a folder named 'results', not {folder}")
    return resolved


def _here() -> str:
    """The current folder by the name under which the shell knows it: links on the way keep theirs."""
    named = os.environ.get("PWD", "")
    try:
        if os.path.isabs(named) and os.path.samefile(named, "."):
            return named
    except OSError:
        pass
    return os.getcwd()
