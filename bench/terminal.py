"""Escaping of control characters in text from records, users and servers before it reaches a terminal."""

import re

COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and line feed, marks that change direction or break lines, and lone surrogates."""


def legible(text: str, lines: bool = False) -> str:
    r"""Return text with control characters as escapes (ESC as \x1b); `lines` keeps line feeds and tabs.

    Printed literally, an escape sequence could set the clipboard or the title, or overwrite earlier output.
    """
    shown = COMMANDS.sub(_escape, text)
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def span(seconds: float) -> str:
    """A duration as hours, minutes and seconds: 3700 -> "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
