"""Text read by a vision-language model, compared with what the image should show (OneIG-Bench, LongText-Bench)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from tasks.ocr.formula import edit_distance

CHINESE = re.compile("[\u4e00-\u9fff]")
LETTERS = "\u4e00-\u9fa5a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
"""Letters that count; all others are removed."""


def prepared(text: str) -> str:
    """Text with the letters that count and single spaces; in Chinese text without spaces."""
    if CHINESE.search(text):
        return re.sub(f"[^{LETTERS}]", "", text)
    return " ".join(re.sub(rf"[^{LETTERS}\s]", "", text).split())


def units(text: str) -> list[str]:
    """What is counted of a prepared text: its words; letters if it is Chinese."""
    return list(text) if CHINESE.search(text) else text.split()


def matched(wanted: str, read: str) -> int:
    """How many of the wanted units were read, in any order, each as often as it was read."""
    chinese = bool(CHINESE.search(wanted))
    found = Counter(list(read) if chinese else read.split())
    return sum((Counter(units(wanted)) & found).values())


def distance(read: str, wanted: str) -> int:
    """Levenshtein distance, in letters."""
    return edit_distance(read, wanted)


def without(text: str, said: Iterable[str]) -> str:
    """The text without phrases that a judge adds."""
    for phrase in said:
        text = text.replace(phrase, "")
    return text
