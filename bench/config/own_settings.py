"""The settings of one task among those of several, for commands that carry out a run per task."""

import json
from collections.abc import Iterable
from typing import Any

from bench.config.settings import parse_override

SECTIONS = ("scorers", "rewards")
"""Sections whose entries belong to one task each."""


def own_settings(overrides: list[str], task: str, tasks: Iterable[str]) -> list[str]:
    """The --set values without the scorers and rewards of other tasks of the same command.

    A scorer that one of the task's rewards uses is its own. Settings of tasks that the command does not have stay, so
    that they are refused. Raises UsageError for a value that is not KEY=VALUE.
    """
    parsed = [parse_override(override) for override in overrides]
    others = set(tasks) - {task}
    for settings in parsed:
        rewards = settings.get("rewards")
        mine = rewards.get(task) if isinstance(rewards, dict) else None
        others -= set(mine) if isinstance(mine, dict) else set()
    found = []
    for override, settings in zip(overrides, parsed):
        ((section, value),) = settings.items()
        if section not in SECTIONS or not isinstance(value, dict):
            found.append(override)
        elif kept := _without(value, others if section == "scorers" else set(tasks) - {task}):
            found.append(override if kept == value else f"{section}={json.dumps(kept)}")
    return found


def _without(section: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}
