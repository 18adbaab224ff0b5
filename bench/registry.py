"""Finding methods, tasks and backbones by entry point, so that another package can add its own."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from bench.errors import MissingError, unknown

GROUPS = {"method": "bench.methods", "task": "bench.tasks", "backbone": "bench.backbones"}


@cache
def registered(kind: str) -> dict[str, EntryPoint]:
    """name -> entry point, for kind 'method', 'task' or 'backbone'."""
    return {point.name: point for point in sorted(entry_points(group=GROUPS[kind]))}


def find(kind: str, name: str):
    """The object behind a name. Raises UsageError naming the nearest name, MissingError if its import fails."""
    known = registered(kind)
    if name not in known:
        raise unknown(kind, name, known)
    try:
        return known[name].load()
    except ImportError as error:
        raise MissingError(f"{kind} {name!r} cannot be imported: {error}") from error
