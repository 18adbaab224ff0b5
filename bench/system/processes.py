"""Processes of this machine, told apart for good: numbers are given out again."""

import os
import re
from pathlib import Path
from socket import gethostname

WRITTEN = re.compile(r"([1-9][0-9]{0,9}) ([^\s\0]+) ([0-9]+)")
"""What `identity` looks like."""


def command_line(process: int) -> bytes:
    """Of a process of this machine, empty if there is none. A zombie has none either."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def started(process: int) -> str:
    """When a process of this machine started, in the kernel's ticks: with its number that names it for good."""
    try:
        told = Path(f"/proc/{process}/stat").read_bytes()  # a program's name need not be UTF-8
        return told.rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


def identity() -> str:
    """This process, for others to see whether it still lives."""
    return f"{os.getpid()} {gethostname()} {started(os.getpid())}"


def lives(written: str) -> bool | None:
    """Whether the process that wrote its `identity` is alive; None if it is another machine's. What is no identity is
    nobody's."""
    found = WRITTEN.fullmatch(written)
    if not found:
        return False
    number, host, ticks = found.groups()
    if host != gethostname():
        return None
    return started(int(number)) == ticks
