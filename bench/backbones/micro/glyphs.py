"""A 5x7 bitmap font of 26 mutually unambiguous glyphs (no I/1, O/0/Q, S/5, B/8, Z/2 pairs)."""

import numpy as np

# Five column bytes per glyph, with the least significant bit at the top.
_COLUMNS = {
    "A": "7E1111117E", "B": "7F49494936", "C": "3E41414122", "D": "7F4141221C", "E": "7F49494941",
    "F": "7F09090901", "G": "3E4149497A", "H": "7F0808087F", "J": "2040413F01", "K": "7F08142241",
    "L": "7F40404040", "M": "7F020C027F", "N": "7F0408107F", "P": "7F09090906", "R": "7F09192946",
    "S": "4649494931", "T": "01017F0101", "U": "3F4040403F", "V": "1F2040201F", "W": "3F4038403F",
    "X": "6314081463", "Y": "0708700807", "Z": "6151494543", "3": "2141454B31", "4": "1814127F10",
    "7": "0171090503",
}  # fmt: skip

ALPHABET = "".join(_COLUMNS)


def _bitmap(columns: str) -> np.ndarray:
    columns_5 = np.frombuffer(bytes.fromhex(columns), np.uint8)
    rows_7 = np.arange(7)
    bits = (columns_5[None, :] >> rows_7[:, None]) & 1
    return bits.astype(np.float32)


GLYPHS: dict[str, np.ndarray] = {char: _bitmap(columns) for char, columns in _COLUMNS.items()}
"""The bitmap of each character, float32 [7, 5] of zeros and ones."""
