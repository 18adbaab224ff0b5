"""Lookup of methods, tasks, backbones, families, feature spaces and commands by entry point, for plug-ins too.

A plug-in of another package may be broken or reuse a registered name. Requesting it by name is then an error of one
line, while `all` and listings skip it with a message.
"""

import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from bench.errors import BenchError, MissingError, UsageError, one_line, unknown

Result = TypeVar("Result")
GROUPS = {
    "method": "bench.methods",
    "task": "bench.tasks",
    "backbone": "bench.backbones",
    "family": "bench.families",
    "features": "bench.features",
    "command": "bench.commands",
}
OURS = ("bench", "methods", "tasks", "report", "sweeps")
"""Packages of this project. Their broken plug-ins are errors, because what `all` means must not depend on them."""
BASES = {
    "method": "bench.api.method.Method",
    "task": "bench.api.task.Task",
    "features": "bench.api.features.FeatureSpace",
}
"""Kind -> the class that its plug-ins must extend, as a name because importing it takes time."""
ATTRIBUTES = {"method": ("name", "source"), "task": ("name", "version", "headline"), "features": ()}
"""Kind -> the string attributes that its plug-ins must have."""


@cache
def _points(kind: str) -> dict[str, list[EntryPoint]]:
    """Return name -> its distinct entry points, more than one if several packages register the name."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUPS[kind])):
        found.setdefault(point.name, {}).setdefault(point.value, point)
    return {name: list(points.values()) for name, points in found.items()}


def registered(kind: str) -> dict[str, EntryPoint]:
    """Return name -> entry point of a kind: 'method', 'task', 'backbone', 'family', 'features' or 'command'.

    For a name that is registered more than once it is the first entry point in sorted order.
    """
    return {name: points[0] for name, points in _points(kind).items()}


def ours(kind: str, name: str) -> bool:
    """Return whether this project registers a name, even if another package registers it too."""
    packages = (point.module.partition(".")[0] for point in _points(kind)[name])
    return any(package in OURS for package in packages)


def origin(point: EntryPoint) -> str:
    """Describe an entry point by its package and object."""
    return f"{point.dist.name if point.dist else 'an unknown package'} ({point.value})"


def rivals(kind: str, name: str) -> str:
    """Describe the packages that register the same name; empty if there is only one."""
    points = _points(kind)[name]
    if len(points) == 1:
        return ""
    return " and ".join(origin(point) for point in points)


def find(kind: str, name: str) -> Any:
    """Load the object that is registered under a name.

    Raises UsageError for an unknown name, with the nearest known one, and for a name that several packages register.
    Raises MissingError if the object cannot be imported or is not of this kind.
    """
    known = _points(kind)
    if name not in known:
        raise unknown(kind, name, known)
    if packages := rivals(kind, name):
        raise UsageError(f"{kind} {name!r} is registered more than once, by {packages}: uninstall all but one")
    try:
        found = known[name][0].load()
    # Importing another package runs its code, which may raise anything.
    except (Exception, SystemExit) as error:
        cause = one_line(error)
        if not isinstance(error, ImportError):
            cause = f"{type(error).__name__}: {cause}"
        raise broken(kind, name, f"cannot be imported: {cause}") from error
    if lack := _lack(kind, found):
        raise broken(kind, name, lack)
    return found


def broken(kind: str, name: str, why: str) -> MissingError:
    """Make the error for an entry point that does not give a usable object."""
    package = origin(registered(kind)[name])
    return MissingError(f"{kind} {name!r} of {package} {why}; repair that package or uninstall it")


def guarded(kind: str, name: str, function: Callable[..., Result], *given: object) -> Result:
    """Call a function of a plug-in. What the code of another package raises becomes the MissingError of `broken`."""
    try:
        return function(*given)
    except (Exception, SystemExit) as error:
        # Running out of memory has its own advice; the class is torch's, which is not imported here.
        is_full = type(error).__name__ == "OutOfMemoryError"
        if isinstance(error, BenchError) or is_full or ours(kind, name):
            raise
        raise broken(kind, name, f"fails: {type(error).__name__}: {one_line(error)}") from error


def _lack(kind: str, found: Any) -> str:
    """Say why an object is not a plug-in of this kind; empty if it is one."""
    if kind not in BASES:
        return "" if callable(found) else f"is not a function but a value of type {type(found).__name__}"
    lineage = found.__mro__ if isinstance(found, type) else ()
    names = [f"{base.__module__}.{base.__qualname__}" for base in lineage]
    if BASES[kind] not in names:
        return f"is not a subclass of {BASES[kind]}"
    values = {name: getattr(found, name, None) for name in ATTRIBUTES[kind]}
    lacking = [name for name, value in values.items() if not isinstance(value, str)]
    lacking += sorted(getattr(found, "__abstractmethods__", ()))
    return f"lacks {', '.join(lacking)}" if lacking else ""


def usable(kind: str) -> dict[str, Any]:
    """Load all usable plug-ins of a kind: name -> object.

    A broken plug-in of another package is skipped with a line on stderr. A broken one of this project raises what
    `find` raises.
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
    """Print a line to stderr, the same line only once per process."""
    print(line, file=sys.stderr)


def leave_out(error: Exception) -> None:
    """Report, once per process, that a plug-in of another package is skipped."""
    _say(f"left out: {one_line(error)}")


def task_name(name: str) -> str:
    """Check the name of a single task; 'all' is not one. Raises what `find` raises."""
    find("task", name)
    return name


def task_names(names: list[str]) -> list[str]:
    """Resolve the task names that a user gave; ["all"] means every task whose `Task.in_all` is true.

    Raises UsageError for an empty, repeated or unknown name.
    """
    if not names:
        raise UsageError("the task list is empty; name tasks or 'all'")
    if names == ["all"]:
        return [name for name, task in usable("task").items() if task.in_all]
    return named("task", names)


def named(kind: str, names: list[str]) -> list[str]:
    """Check that every name is registered, loads and is given once.

    Raises UsageError for 'all' among other names and for repeated names, and what `find` raises.
    """
    known = registered(kind)
    for name in names:
        if name == "all":
            given = ",".join(names)
            raise UsageError(f"'all' cannot be combined with names: give either all or a list of {kind}s, got {given}")
        if name not in known:
            raise unknown(kind, name, [*known, "all"])
        find(kind, name)
    refuse_repeats(kind, names)
    return names


def refuse_repeats(kind: str, names: list[str]) -> None:
    """Raise UsageError if a name is given more than once."""
    if len(set(names)) != len(names):
        raise UsageError(f"a {kind} is named twice: {', '.join(names)}")
