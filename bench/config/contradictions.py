"""Finding contradictory settings: when a key is given two values, neither is dropped silently."""

from collections.abc import Iterable, Iterator
from typing import Any

from bench.config.settings import flattened, parse_override
from bench.errors import UsageError

WHOLE = ("budget",)
"""Sections that a value replaces completely: budget.updates and budget.nfe count as one setting."""


def leaves(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as a flat mapping from dotted key to value; sections in WHOLE count as values."""
    return flattened(settings, whole=WHOLE, prefix=prefix)


def contradictions(told: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(key, earlier option, later option) of every two options that give different values to the same key.

    `told` yields pairs: the option as the user wrote it, and the key=value that it means.
    """
    last: dict[str, tuple[str, Any]] = {}
    for words, override in told:
        for key, value in leaves(parse_override(override)).items():
            before, known = last.get(key, (words, value))
            # The first test matters for NaN, which does not equal itself.
            if key in last and known != value:
                yield key, before, words
            last[key] = words, value


def refuse_contradictions(told: Iterable[tuple[str, str]]) -> None:
    """Raise UsageError for the first contradiction."""
    for key, before, words in contradictions(told):
        raise UsageError(f"{before} and {words} contradict each other: give exactly one value for {key}")


def replaced(overrides: list[str] | None, option: str = "--set") -> list[str]:
    """One note for every override that replaces an earlier one, for commands that append to a stored command line."""
    told = contradictions((f"{option} {text}", text) for text in overrides or [])
    return [f"{words} overrides {before}" for _, before, words in told]


def refuse_contradicting_sets(overrides: list[str] | None) -> list[str] | None:
    """Return the --set values of a command line unchanged. Raises UsageError if two of them contradict each other."""
    refuse_contradictions((f"--set {text}", text) for text in overrides or [])
    return overrides
