"""Loads tasks with the scorers that the settings choose for them."""

from bench.api.features import FeatureSpace
from bench.api.task import Task
from bench.config.rewards import Rewards, all_scorers
from bench.config.scorers import FEATURES, NO_FEATURES, URL
from bench.registry import find, registered
from bench.scoring.remote import RemoteTask
from bench.scoring.reward_set import RewardSet

"""Name of the setting that places a scorer's networks: scorers.<task>.device."""
DEVICE = "device"


def load_task(name: str, world: str, sources: dict[str, str] | None = None, device: str = "cpu") -> Task:
    """A registered task for a world, scored by the server at `sources["url"]` or in this process.

    `sources`: the settings scorers.<name>. A local scorer's networks run on `device` unless `sources` names another.
    """
    sources = sources or {}
    task_class = find("task", name)
    local = {key: value for key, value in sources.items() if key != URL}
    if DEVICE in task_class.sources:
        local = {DEVICE: device} | local
    task = task_class(world, local)
    return RemoteTask(task, sources[URL]) if URL in sources else task


def load_features(world: str, scorers: dict[str, dict[str, str]], device: str = "cpu") -> FeatureSpace | None:
    """The feature space of a world, with the settings scorers.features; None if there is none or the settings say so.

    It runs on `device` unless the settings name another.
    """
    given = scorers.get(FEATURES, {})
    if world not in registered("features") or given == NO_FEATURES:
        return None
    kind = find("features", world)
    return kind({DEVICE: device} | given if DEVICE in kind.sources else given)


def load_tasks(
    names: tuple[str, ...],
    world: str,
    scorers: dict[str, dict[str, str]] | None = None,
    device: str = "cpu",
    rewards: Rewards | None = None,
) -> dict[str, Task]:
    """task -> Task for a backbone's world, a RewardSet if it has several rewards.

    `scorers` and `rewards` are as in a resolved spec. A scorer of several tasks is loaded once.
    """
    scorers, rewards = scorers or {}, rewards or {}
    loaded = {name: load_task(name, world, scorers.get(name), device) for name in all_scorers(names, rewards)}
    tasks = {name: loaded[name] for name in names}
    for name, weights in rewards.items():
        tasks[name] = RewardSet(loaded[name], [loaded[other] for other in weights if other != name], weights)
    return tasks
