"""Settings that contradict one another: of two values for one key neither is dropped in silence."""

from collections.abc import Iterable, Iterator
from typing import Any

from bench.config.settings import parse_override
from bench.errors import UsageError

WHOLE = ("budget",)
"""Sections of which one entry replaces another: budget.updates and budget.nfe are one setting."""


def leaves(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an empty section is a value."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        nested = isinstance(value, dict) and value and path not in WHOLE
        found |= leaves(value, f"{path}.") if nested else {path: value}
    return found


def contradictions(told: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(key, option, later option) of all that say different things of one key.

    `told` are pairs: an option as the user wrote it, and what it says as key=value.
    """
    last: dict[str, tuple[str, Any]] = {}
    for words, override in told:
        for key, value in leaves(parse_override(override)).items():
            before, known = last.get(key, (words, value))
            if key in last and known != value:  # NaN is not equal to itself
                yield key, before, words
            last[key] = words, value


def refuse_contradictions(told: Iterable[tuple[str, str]]) -> None:
    """Raise UsageError for the first contradiction."""
    for key, before, words in contradictions(told):
        raise UsageError(f"{before} and {words} contradict one another: give exactly one value for {key}")


def replaced(overrides: list[str] | None, option: str = "--set") -> list[str]:
    """What to say where a --set replaces an earlier one, as where one is added to a command that is there."""
    told = contradictions((f"{option} {text}", text) for text in overrides or [])
    return [f"{words} holds, and not {before}" for _, before, words in told]


def refuse_contradicting_sets(overrides: list[str] | None) -> list[str] | None:
    """The --set values of a command line as they are. Raises UsageError where one contradicts another."""
    refuse_contradictions((f"--set {text}", text) for text in overrides or [])
    return overrides
