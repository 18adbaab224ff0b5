"""What may be set where pictures are drawn or scored but nothing is trained."""

import urllib.request
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, ValidationError

from bench.config.bounds import Shift
from bench.config.compute import Compute
from bench.config.settings import Settings, first_problem, merge, parse_override
from bench.errors import MissingError, UsageError, unknown
from bench.masking import masked
from bench.registry import find

URL = "url"
"""Source that every task knows: the address of a server that scores its pictures."""


class SigmasSpec(Settings):
    """Which noise levels the Euler sampler visits."""

    shift: Shift | None = None
    """None: the backbone's."""
    table: Literal["diffusers", "once"] = "diffusers"


class ViewSpec(Settings):
    """Sections that do not concern training."""

    scorers: dict[str, dict[str, str]] = Field(default={})
    compute: Compute = Compute()
    sampler: SigmasSpec = SigmasSpec()


def view_settings(
    overrides: list[str],
    tasks: tuple[str, ...],
    sections: tuple[str, ...],
    world: str,
    compute: Mapping[str, Any] = MappingProxyType({}),
) -> ViewSpec:
    """What --set says of the named sections of a ViewSpec; `world` is that of the pictures, `compute` how the backbone
    that draws them is computed where nobody says (Descriptor.defaults).

    Raises UsageError for anything else.
    """
    settings: dict[str, Any] = {"compute": dict(compute)}
    for override in overrides:
        parsed = parse_override(override)
        if not set(parsed) <= set(sections):
            known = [f"scorers.{task}.{key}" for task in tasks for key in find("task", task).sources]
            known += [f"compute.{name}" for name in Compute.model_fields if "compute" in sections]
            known += [f"sampler.{name}" for name in SigmasSpec.model_fields if "sampler" in sections]
            raise unknown("setting", override.partition("=")[0], known)
        merge(settings, parsed)
    settings["scorers"] = words(settings.get("scorers", {}))
    check_scorers(settings["scorers"], list(tasks), world)
    try:
        return ViewSpec.model_validate(settings)
    except ValidationError as error:
        raise UsageError(first_problem(error, ViewSpec)) from error


def words(scorers: Any) -> dict[str, dict[str, str]]:
    """A section `scorers` with its values as text: 30 is a convention's name there. Raises UsageError."""
    if not isinstance(scorers, dict):
        raise UsageError("scorers is a section of settings, not a value")
    for task, sources in scorers.items():
        if not isinstance(sources, dict):
            raise UsageError(f"scorers.{task} is a section of settings, not a value")
    return {task: {key: str(value) for key, value in sources.items()} for task, sources in scorers.items()}


def check_scorers(scorers: dict[str, dict[str, str]], tasks: list[str], world: str) -> None:
    """Raise UsageError for a scorer of another task, or a key that the task does not know or has no use for."""
    for name, sources in scorers.items():
        if name not in tasks:
            raise unknown("task in scorers", name, tasks)
        task = find("task", name)
        for key in sources:
            known = [*task.sources, URL]
            if key not in known:
                raise unknown(f"key in scorers.{name}", key, known)
            if key != URL and task.sources_in and world not in task.sources_in:
                raise UsageError(f"scorers.{name}.{key} does nothing in the world {world!r}: leave it out")
        if URL in sources:
            check_url(sources[URL], name)


def check_worlds(scorers: dict[str, dict[str, str]], tasks: list[str], world: str) -> None:
    """Raise UsageError for a task that does not serve a world. Tasks are made for this, which loads no weights."""
    for name in tasks:
        sources = {key: value for key, value in scorers.get(name, {}).items() if key != URL}
        try:
            find("task", name)(world, sources)
        except MissingError:
            continue  # what is missing is asked for where it is needed


def check_url(url: str, name: str) -> None:
    """Raise UsageError for what is no http address of a scorer; `name` is the task's."""
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        valid = valid and url.isascii() and url.isprintable() and " " not in url and ".." not in parts.netloc
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"scorers.{name}.url takes an http address, got {masked(url)!r}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"scorers.{name}.url takes an address without user, password, ? and #")
