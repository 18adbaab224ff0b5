"""Text read by a vision-language model, compared with what the image should show (OneIG-Bench, LongText-Bench)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tasks.ocr.formula import edit_distance

CHINESE = re.compile("[\u4e00-\u9fff]")
LETTERS = "\u4e00-\u9fa5a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
"""Letters that count; all others are removed."""


def prepared(text: str, chinese: bool | None = None) -> str:
    """Text with the letters that count and single spaces; Chinese text without spaces.

    `chinese` None: whether it has Chinese letters that count decides.
    """
    kept = re.sub(rf"[^{LETTERS}\s]", "", text)
    if chinese is None:
        chinese = bool(CHINESE.search(kept))
    return "".join(kept.split()) if chinese else " ".join(kept.split())


def units(text: str, chinese: bool | None = None) -> list[str]:
    """What is counted of a prepared text: its words; letters if it is Chinese."""
    if chinese is None:
        chinese = bool(CHINESE.search(text))
    return list(text) if chinese else text.split()


def matched(wanted: list[str], read: list[str]) -> int:
    """How many of the wanted units were read, in any order, each as often as it was read."""
    return sum((Counter(wanted) & Counter(read)).values())


def distance(read: str, wanted: str) -> int:
    """Levenshtein distance, in letters."""
    return edit_distance(read, wanted)


def without(text: str, said: Iterable[str]) -> str:
    """The text without phrases that a judge adds."""
    for phrase in said:
        text = text.replace(phrase, "")
    return text
