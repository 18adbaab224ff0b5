"""The section `rewards`: further scorers of a task's images, with their weights."""

from collections.abc import Iterable

from bench.config.scorers import URL
from bench.errors import MissingError, UsageError, unknown
from bench.registry import find

Rewards = dict[str, dict[str, float]]
"""task -> scorer -> weight. A scorer has the name of its task."""


def scorers_of(task: str, rewards: Rewards) -> tuple[str, ...]:
    """The scorers of a task's images: its own, and those that `rewards` adds."""
    return tuple(rewards.get(task, {task: 1.0}))


def all_scorers(tasks: Iterable[str], rewards: Rewards) -> list[str]:
    """The scorers of several tasks, each once."""
    return list(dict.fromkeys(name for task in tasks for name in scorers_of(task, rewards)))


def completed(rewards: Rewards, tasks: list[str]) -> Rewards:
    """The section with the task's own weight (1 unless given) before the others, so that equal sets are equal.

    Raises UsageError for an unknown task or scorer, and for a section that adds no scorer.
    """
    found: Rewards = {}
    for task, weights in rewards.items():
        if task not in tasks:
            raise unknown("task in rewards", task, tasks)
        others = sorted(weights.keys() - {task})
        for name in others:
            find("task", name)
        if not others:
            raise UsageError(f"rewards.{task} adds no scorer to the task's own: set rewards.{task}.SCORER=WEIGHT")
        found[task] = {task: weights.get(task, 1.0)} | {name: weights[name] for name in others}
    return found


def check_rewards(
    rewards: Rewards, scorers: dict[str, dict[str, str]], tasks: list[str], world: str, splits: tuple[str, ...]
) -> None:
    """Raise UsageError for a scorer that cannot score a task's prompts, and for prompts set for a mere scorer.

    `rewards` is completed. Reads the prompts of `splits`, but loads no weights.
    """
    for task, weights in rewards.items():
        for name in weights:
            if name not in tasks and "prompts" in scorers.get(name, {}):
                raise UsageError(
                    f"scorers.{name}.prompts does nothing, because {name} only scores images of {task}'s prompts: "
                    "leave it out"
                )
            if name != task:
                _check_prompts(task, name, scorers, world, splits)


def _check_prompts(
    task: str, scorer: str, scorers: dict[str, dict[str, str]], world: str, splits: tuple[str, ...]
) -> None:
    own, other = ({k: v for k, v in scorers.get(name, {}).items() if k != URL} for name in (task, scorer))
    try:
        prompts = [prompt for split in splits for prompt in find("task", task)(world, own).prompts(split)]
        judge = find("task", scorer)(world, other)
    except MissingError:
        return  # reported by the code that needs the missing file
    for prompt in prompts:
        try:
            judge.check(prompt)
        except UsageError as error:
            raise UsageError(
                f"rewards.{task}.{scorer}: {scorer} cannot score the prompt {prompt.text[:60]!r} of {task}: {error}"
            ) from error
