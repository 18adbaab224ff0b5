"""The settings of commands that draw or score images without training."""

import urllib.request
from collections.abc import Mapping
from itertools import combinations
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from bench.config.bounds import Shift
from bench.config.compute import Compute
from bench.config.settings import Settings, first_problem, merge, parse_override
from bench.errors import MissingError, UsageError, unknown
from bench.masking import masked
from bench.registry import find, registered

URL = "url"
"""Scorer setting that every task accepts: the address of a server that scores its images."""
FEATURES = "features"
"""Name of the section of `scorers` with the settings of the world's feature space, in which diversity is measured."""
NO_FEATURES = {"model": "none"}
"""That section for leaving the diversity out."""


class SigmasSpec(Settings):
    """The noise levels that the Euler sampler visits."""

    shift: Shift | None = None
    """Timestep shift; None means the backbone's."""
    table: str | None = None
    """How the table of sigmas is built (bench/sampler/levels.py); None means the backbone's."""


class ViewSpec(Settings):
    """The sections of settings that apply without training."""

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
    """The ViewSpec that --set values describe.

    Only the named `sections` may be set; `world` is that of the images, and `compute` holds the defaults of the
    backbone that draws them (Descriptor.defaults). Raises UsageError for any other setting or an invalid value.
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
    if FEATURES in settings["scorers"] and "compute" not in sections:
        raise UsageError(f"scorers.{FEATURES} does nothing here: only evaluations that draw images measure diversity")
    check_scorers(settings["scorers"], list(tasks), world)
    try:
        return ViewSpec.model_validate(settings)
    except ValidationError as error:
        raise UsageError(first_problem(error, ViewSpec)) from error


def words(scorers: Any) -> dict[str, dict[str, str]]:
    """The section `scorers` with its values converted to text, because YAML reads the name 30 as a number.

    Raises UsageError if a section is missing where one is expected.
    """
    if not isinstance(scorers, dict):
        raise UsageError("scorers is a section of settings, not a value")
    for task, sources in scorers.items():
        if not isinstance(sources, dict):
            raise UsageError(f"scorers.{task} is a section of settings, not a value")
    as_text: dict[str, dict[str, str]] = {}
    for task, sources in scorers.items():
        as_text[task] = {key: str(value) for key, value in sources.items()}
    return as_text


def check_scorers(scorers: dict[str, dict[str, str]], tasks: list[str], world: str) -> None:
    """Raise UsageError for a scorer of a task that is not in `tasks`, and for an unknown key or one without effect."""
    for name, sources in scorers.items():
        if name == FEATURES:
            _check_features(sources, world)
            continue
        if name not in tasks:
            raise unknown("task in scorers", name, [*tasks, FEATURES])
        task = find("task", name)
        for key in sources:
            known = [*task.sources, URL]
            if key not in known:
                raise unknown(f"key in scorers.{name}", key, known)
            elsewhere = task.sources_in and world not in task.sources_in
            if key != URL and elsewhere:
                raise UsageError(f"scorers.{name}.{key} does nothing in the world {world!r}: leave it out")
        if URL in sources:
            check_url(sources[URL], f"scorers.{name}.{URL}")


def _check_features(sources: dict[str, str], world: str) -> None:
    """Raise UsageError for a setting that the world's feature space does not have."""
    if sources.get("model") == NO_FEATURES["model"]:
        if sources != NO_FEATURES:
            others = ", ".join(key for key in sources if key != "model")
            raise UsageError(f"scorers.{FEATURES}.model=none leaves diversity out: leave out {others} too")
        return
    known = find("features", world).sources if world in registered("features") else {}
    for key in sources:
        if not known:
            raise UsageError(f"scorers.{FEATURES}.{key} does nothing in the world {world!r}: leave it out")
        if key not in known:
            raise unknown(f"key in scorers.{FEATURES}", key, known)


def check_worlds(scorers: dict[str, dict[str, str]], tasks: list[str], world: str) -> None:
    """Raise UsageError for a task that does not support a world, and for two that cannot be in one run.

    Constructs the tasks, which loads no weights.
    """
    made = []
    for name in tasks:
        sources = {key: value for key, value in scorers.get(name, {}).items() if key != URL}
        try:
            made.append(find("task", name)(world, sources))
        except MissingError:
            continue  # reported by the code that needs the missing file
    for one, other in combinations(made, 2):
        one.check_beside(other)


def check_url(url: str, setting: str) -> None:
    """Raise UsageError if `url`, the value of a setting, is not a plain http or https address."""
    try:
        parts = urllib.parse.urlsplit(url)
        plain = url.isascii() and url.isprintable() and " " not in url and ".." not in parts.netloc
        valid_port = parts.port is None or parts.port > 0
        valid = parts.scheme in ("http", "https") and parts.hostname and valid_port and plain
    except ValueError:  # an invalid port or IPv6 address
        valid = False
    if not valid:
        raise UsageError(f"{setting} takes an http address, got {masked(url)!r}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"{setting} takes an address without user, password, query (?) and fragment (#)")
