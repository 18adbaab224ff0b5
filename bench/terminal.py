"""Text for terminals: what records, users and servers wrote is shown, never obeyed."""

import re

COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, marks that turn or break lines, halves of surrogate pairs."""


def legible(text: str, lines: bool = False) -> str:
    r"""Text with what a terminal would obey shown as escapes, ESC as \x1b; with `lines`, line feeds and tabs stay.

    An escape sequence may set the clipboard, the title or what was printed before.
    """
    shown = COMMANDS.sub(lambda found: ascii(found[0])[1:-1], text)
    return shown if lines else shown.replace("\n", "\\n").replace("\t", "\\t")
