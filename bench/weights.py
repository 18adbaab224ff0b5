"""Models by folder or hub id: what their weights hash to."""

from functools import cache

from bench.errors import MissingError, one_line
from bench.hashing import content_hash

FILES = ("model.safetensors", "pytorch_model.bin")


@cache
def weights_hash(source: str) -> str:
    """Content hash of a transformers model's weights; fetches those of a hub id.

    Raises MissingError for a folder without weights, and for a hub id that cannot be reached.
    """
    from pathlib import Path

    from transformers.utils import cached_file

    try:
        found = [cached_file(source, name, _raise_exceptions_for_missing_entries=False) for name in FILES]
    except OSError as error:
        raise MissingError(f"no model at {source!r}: {one_line(error)}") from error
    paths = [Path(path) for path in found if path]
    if not paths:
        raise MissingError(f"no weights at {source!r}: neither {' nor '.join(FILES)}")
    return content_hash(paths[:1])
