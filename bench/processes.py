"""Processes of this machine, told apart for good: numbers are given out again."""

import os
from pathlib import Path
from socket import gethostname


def command_line(process: int) -> bytes:
    """Of a process of this machine, empty if there is none. A zombie has none either."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def started(process: int) -> str:
    """When a process of this machine started, in the kernel's ticks: with its number that names it for good."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def identity() -> str:
    """This process, for others to see whether it still lives."""
    return f"{os.getpid()} {gethostname()} {started(os.getpid())}"


def lives(written: str) -> bool | None:
    """Whether the process that wrote its `identity` is alive; None if it is another machine's."""
    number, _, rest = written.partition(" ")
    host, _, ticks = rest.partition(" ")
    if not number.isdecimal() or not ticks:
        return False
    if host != gethostname():
        return None
    return started(int(number)) == ticks
