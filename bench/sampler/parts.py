"""A batch in contiguous parts."""


def parts(rows: range, size: int) -> list[slice]:
    """Contiguous rows in slices of at most `size`: views, where an index tensor would be copied to the device."""
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]
