"""Finding methods, tasks, backbones and commands by entry point, so that another package can add its own.

Other packages may be broken, or take a name that is taken. What is named is refused then, in one line; `all` and lists
go on without it.
"""

import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from bench.errors import BenchError, MissingError, UsageError, one_line, unknown

GROUPS = {
    "method": "bench.methods",
    "task": "bench.tasks",
    "backbone": "bench.backbones",
    "command": "bench.commands",
}
OURS = ("bench", "methods", "tasks", "report", "sweeps")
"""Packages of this project: what `all` means must not change because one of their files is broken."""
BASES = {"method": "bench.api.method.Method", "task": "bench.api.task.Task"}
"""Classes that an entry point must give a subclass of, by name: importing them takes time."""
ATTRIBUTES = {"method": ("name", "source"), "task": ("name", "version", "headline")}


@cache
def _points(kind: str) -> dict[str, list[EntryPoint]]:
    """name -> its different entry points: several where packages take one name."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUPS[kind])):
        found.setdefault(point.name, {}).setdefault(point.value, point)
    return {name: list(points.values()) for name, points in found.items()}


def registered(kind: str) -> dict[str, EntryPoint]:
    """name -> entry point, for kind 'method', 'task', 'backbone' or 'command'; of several of one name the first."""
    return {name: points[0] for name, points in _points(kind).items()}


def ours(kind: str, name: str) -> bool:
    """Whether a registered name is this project's own, also where another package takes it too."""
    return any(point.module.partition(".")[0] in OURS for point in _points(kind)[name])


def origin(point: EntryPoint) -> str:
    """The package and the object that an entry point names."""
    return f"{point.dist.name if point.dist else 'an unknown package'} ({point.value})"


def rivals(kind: str, name: str) -> str:
    """The packages that have one name, where they are several."""
    points = _points(kind)[name]
    return " and ".join(origin(point) for point in points) if len(points) > 1 else ""


def find(kind: str, name: str) -> Any:
    """The object behind a name.

    Raises UsageError naming the nearest name, or the packages that both have this one; MissingError if what it names
    cannot be loaded or is of another kind.
    """
    known = _points(kind)
    if name not in known:
        raise unknown(kind, name, known)
    if packages := rivals(kind, name):
        raise UsageError(f"{kind} {name!r} is registered more than once, by {packages}: uninstall all but one")
    try:
        found = known[name][0].load()
    except (Exception, SystemExit) as error:  # whatever another package does when it is imported
        cause = one_line(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {one_line(error)}"
        raise broken(kind, name, f"cannot be imported: {cause}") from error
    if lack := _lack(kind, found):
        raise broken(kind, name, lack)
    return found


def broken(kind: str, name: str, why: str) -> MissingError:
    """The error for an entry point that gives nothing that could be used."""
    package = origin(registered(kind)[name])
    return MissingError(f"{kind} {name!r} of {package} {why}; repair that package or uninstall it")


def _lack(kind: str, found: Any) -> str:
    """Why an object is not what its entry point should give; nothing if it is."""
    if kind not in BASES:
        return "" if callable(found) else f"is no function but {type(found).__name__}"
    lineage = found.__mro__ if isinstance(found, type) else ()
    if BASES[kind] not in [f"{base.__module__}.{base.__qualname__}" for base in lineage]:
        return f"is no subclass of {BASES[kind]}"
    lacking = [name for name in ATTRIBUTES[kind] if not isinstance(getattr(found, name, None), str)]
    lacking += sorted(getattr(found, "__abstractmethods__", ()))
    return f"lacks {', '.join(lacking)}" if lacking else ""


def usable(kind: str) -> dict[str, Any]:
    """name -> object of all that can be used; a line on stderr says which of another package cannot be.

    Raises what `find` raises for this project's own.
    """
    found = {}
    for name in registered(kind):
        try:
            found[name] = find(kind, name)
        except BenchError as error:
            if ours(kind, name):
                raise
            leave_out(error)
    return found


@cache
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def leave_out(error: Exception) -> None:
    """Say, once, that something of another package is left out."""
    _say(f"left out: {one_line(error)}")


def task_name(name: str) -> str:
    """The one task a user named; 'all' is none. Raises what `find` raises."""
    find("task", name)
    return name


def task_names(names: list[str]) -> list[str]:
    """The tasks a user named; ["all"] stands for every one that counts itself in (Task.in_all). Raises UsageError."""
    if not names:
        raise UsageError("the task list is empty; name tasks or 'all'")
    if names == ["all"]:
        return [name for name, task in usable("task").items() if task.in_all]
    return named("task", names)


def named(kind: str, names: list[str]) -> list[str]:
    """Names of which each is registered, and there once. Raises UsageError, and what `find` raises."""
    known = registered(kind)
    for name in names:
        if name == "all":
            raise UsageError(f"'all' stands alone: give either all or names of {kind}s, got {','.join(names)}")
        if name not in known:
            raise unknown(kind, name, [*known, "all"])
        find(kind, name)
    refuse_repeats(kind, names)
    return names


def refuse_repeats(kind: str, names: list[str]) -> None:
    """Raise UsageError where a name stands twice."""
    if len(set(names)) != len(names):
        raise UsageError(f"a {kind} is named twice: {', '.join(names)}")
