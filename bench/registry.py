"""Finding methods, tasks, backbones and commands by entry point, so that another package can add its own."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from bench.errors import MissingError, UsageError, unknown

GROUPS = {
    "method": "bench.methods",
    "task": "bench.tasks",
    "backbone": "bench.backbones",
    "command": "bench.commands",
}


@cache
def registered(kind: str) -> dict[str, EntryPoint]:
    """name -> entry point, for kind 'method', 'task', 'backbone' or 'command'."""
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


def task_name(name: str) -> str:
    """The one task a user named; 'all' is none. Raises UsageError."""
    if name not in (known := registered("task")):
        raise unknown("task", name, known)
    return name


def task_names(names: list[str]) -> list[str]:
    """The tasks a user named; ["all"] stands for every one that counts itself in (Task.in_all). Raises UsageError."""
    known = list(registered("task"))
    if not names:
        raise UsageError("the task list is empty; name tasks or 'all'")
    if names == ["all"]:
        return [name for name in known if find("task", name).in_all]
    for name in names:
        if name not in known:
            raise unknown("task", name, [*known, "all"])
    if len(set(names)) != len(names):
        raise UsageError(f"a task is named twice: {', '.join(names)}")
    return names
