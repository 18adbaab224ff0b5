"""Processes of this machine, identified despite the reuse of process ids."""

import os
import re
from pathlib import Path
from socket import gethostname

WRITTEN = re.compile(r"([1-9][0-9]{0,9}) ([^\s\0]+) ([0-9]+)")
"""Pattern of an `identity`: process id, host and start time."""


def command_line(process: int) -> bytes:
    """Return the command line of a local process; empty if it does not exist or is a zombie."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def started(process: int) -> str:
    """Return when a local process started, in clock ticks since boot; empty if it does not exist.

    Together with its id this identifies a process uniquely.
    """
    try:
        # Bytes, because a program's name need not be UTF-8. It is in parentheses and may contain some itself.
        content = Path(f"/proc/{process}/stat").read_bytes()
        fields = content.rpartition(b")")[2].split()
        # Field 22 of proc(5), starttime, counted from field 3.
        return fields[19].decode()
    except (OSError, IndexError):
        return ""


def identity() -> str:
    """Return a text that identifies this process, with which `lives` can check whether it is still running."""
    return f"{os.getpid()} {gethostname()} {started(os.getpid())}"


def lives(written: str) -> bool | None:
    """Return whether the process with this `identity` is alive; None if it is on a different machine.

    A text that is not an identity counts as a dead process.
    """
    found = WRITTEN.fullmatch(written)
    if not found:
        return False
    number, host, ticks = found.groups()
    if host != gethostname():
        return None
    return started(int(number)) == ticks
