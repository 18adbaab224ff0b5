"""Flow-GRPO's OCR reward (arXiv 2505.05470): one minus the normalised edit distance to the quoted text."""


def target_text(prompt: str) -> str:
    """The text between the first pair of double quotes; raises ValueError if there is none."""
    parts = prompt.split('"')
    if len(parts) < 3 or not parts[1].replace(" ", ""):
        raise ValueError(f"an OCR prompt needs text in double quotes: {prompt!r}")
    return parts[1]


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, char_a in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, char_b in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (char_a != char_b))
    return row[-1]


def ocr_reward(recognised: str, target: str) -> float:
    """1 - min(distance, length) / length; spaces and case ignored; 1 if the target is a substring."""
    read, want = recognised.replace(" ", "").lower(), target.replace(" ", "").lower()
    distance = 0 if want in read else edit_distance(read, want)
    return 1 - min(distance, len(want)) / len(want)
