"""Tasks by name, with the scorers that settings name for them."""

from bench.api.task import Task
from bench.config.scorers import URL
from bench.registry import find
from bench.scoring.remote import RemoteTask

DEVICE = "device"


def load_task(name: str, world: str, sources: dict[str, str] | None = None, device: str = "cpu") -> Task:
    """A registered task for a world; `sources` as in scorers.<name>. Its networks run on `device` unless they say."""
    local = {key: value for key, value in (sources or {}).items() if key != URL}
    if DEVICE in find("task", name).sources:
        local = {DEVICE: device} | local
    if sources and URL in sources:
        return RemoteTask(find("task", name)(world, local), sources[URL])
    return find("task", name)(world, local)


def load_tasks(
    names: tuple[str, ...], world: str, scorers: dict[str, dict[str, str]] | None = None, device: str = "cpu"
) -> dict[str, Task]:
    """task -> Task for a backbone's world; `scorers` as in a spec."""
    return {name: load_task(name, world, (scorers or {}).get(name), device) for name in names}
