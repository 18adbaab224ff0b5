"""Flow-GRPO's OCR reward (arXiv 2505.05470): one minus the normalised edit distance to the quoted text.

The released code removes plain spaces only. Here all invisible characters are removed and letters are composed, because
a no-break space or a decomposed accent would otherwise count as an error that no image can avoid. On plain text both
agree.
"""

import json
import re
import string
import unicodedata

UNSEEN = ("Zs", "Zl", "Zp", "Cc", "Cf")
"""Unicode categories of invisible characters: spaces, line ends, controls and format marks."""
IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Further invisible characters: joiners, fillers, the braille blank, and variation selectors, which choose between the
text and the emoji form of a symbol."""
FIELD = r'(?:"[^"]*"|[^\s",;]*)'
ROW = re.compile(f"(?:{FIELD}[,;\t])*{FIELD}")
"""A row of a table: no space between fields, and none inside unquoted fields."""
CURLY = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u275d\u275e\uff02"
"""Double quotes other than the straight ones of the published prompts."""


def target_text(prompt: str) -> str:
    """The text between the first pair of double quotes, as published.

    Raises ValueError if there is none, or if it is ambiguous.
    """
    parts = prompt.split('"')
    if '""' in prompt:
        raise ValueError(f"an OCR prompt needs text in double quotes, not in doubled quotes as in CSV: {prompt!r}")
    if len(parts) < 3 or not plain(parts[1]):
        raise ValueError(f"an OCR prompt needs text in double quotes: {prompt!r}")
    if '\\"' in prompt:
        raise ValueError(f"an OCR prompt needs plain double quotes, without backslashes: {prompt!r}")
    if _is_json(prompt):
        raise ValueError(f"an OCR prompt is plain text with a part in double quotes, not JSON: {prompt!r}")
    if ROW.fullmatch(prompt) or not _says_something("".join(parts[::2])):
        raise ValueError(f"an OCR prompt needs only its text in double quotes, not the whole prompt: {prompt!r}")
    if any(mark in prompt for mark in CURLY):
        raise ValueError(f"an OCR prompt may contain only straight double quotes, no curly ones: {prompt!r}")
    if len(parts) % 2 == 0 or _measures(parts):
        raise ValueError(f"an OCR prompt needs text in double quotes, and no other double quotes (inches): {prompt!r}")
    if parts[1] != parts[1].strip():
        raise ValueError(f"an OCR prompt needs text in double quotes, without spaces at its ends: {prompt!r}")
    return parts[1]


def _says_something(around: str) -> bool:
    """Whether the text outside the quotes is more than numbers and punctuation."""
    return not all(char.isnumeric() or char in string.punctuation for char in plain(around))


def _measures(parts: list[str]) -> bool:
    """Whether the first quote may be an inch mark.

    It may if it directly follows a number or a word, or follows a number and a space when there are further quotes.
    Letters without upper and lower case do not count as words, since such scripts put quotes directly after words.
    """
    before = parts[0]
    last = before[-1:]
    word = last.lower() != last.upper()
    spaced_number = len(parts) > 3 and before.rstrip()[-1:].isnumeric()
    return last.isnumeric() or word or spaced_number


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def plain(text: str) -> str:
    """The form in which texts are compared: lower case, composed (NFC), without invisible characters."""
    kept = IGNORABLE.sub("", text)
    seen = "".join(char for char in kept if unicodedata.category(char) not in UNSEEN)
    return unicodedata.normalize("NFC", seen).lower()


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance between two strings."""
    row = list(range(len(b) + 1))
    for i, char_a in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, char_b in enumerate(b, 1):
            replaced = diagonal + (char_a != char_b)
            diagonal = row[j]
            row[j] = min(row[j] + 1, row[j - 1] + 1, replaced)
    return row[-1]


def ocr_reward(recognised: str, target: str) -> float:
    """1 - min(distance, length) / length, ignoring spaces and case; 1 if the target is a substring of the reading."""
    read, want = plain(recognised), plain(target)
    distance = 0 if want in read else edit_distance(read, want)
    return 1 - min(distance, len(want)) / len(want)
