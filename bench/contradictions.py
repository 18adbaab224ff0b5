"""Settings that contradict one another are refused: of two values for one key neither is dropped in silence."""

from collections.abc import Iterable
from typing import Any

from bench.errors import UsageError
from bench.settings import parse_override

WHOLE = ("budget",)
"""Sections of which one entry replaces another: budget.updates and budget.evaluations are one setting."""


def leaves(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; an empty section is a value."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        nested = isinstance(value, dict) and value and path not in WHOLE
        found |= leaves(value, f"{path}.") if nested else {path: value}
    return found


def refuse_contradictions(told: Iterable[tuple[str, str]]) -> None:
    """Raise UsageError where two of these say different things of one key.

    `told` are pairs: an option as the user wrote it, and what it says as key=value.
    """
    first: dict[str, tuple[str, Any]] = {}
    for words, override in told:
        for key, value in leaves(parse_override(override)).items():
            before, known = first.setdefault(key, (words, value))
            if known != value:
                raise UsageError(f"{before} and {words} contradict one another: give exactly one value for {key}")


def refuse_contradicting_sets(overrides: list[str] | None) -> list[str] | None:
    """The --set values of a command line as they are. Raises UsageError where one contradicts another."""
    refuse_contradictions((f"--set {text}", text) for text in overrides or [])
    return overrides
