"""`bench list`: the registered methods, tasks, backbones, kernels and presets, one per line."""

from itertools import takewhile
from pathlib import Path

from bench.config.compute import PLAIN
from bench.config.families import families
from bench.config.resolve import PRESETS, describe
from bench.errors import BenchError, unknown
from bench.registry import find, leave_out, registered, rivals
from bench.sampler.transitions import KERNELS, Kernel
from bench.system.files import read_lines

KINDS = ("methods", "tasks", "backbones", "kernels", "presets")


def print_list(what: str) -> None:
    """Print the names of one kind with facts about each. Raises UsageError for an unknown kind."""
    if what not in KINDS:
        raise unknown("list", what, KINDS)
    rows: list[tuple[str, ...]]
    if what == "kernels":
        rows = [_kernel(kernel) for kernel in KERNELS.values()]
    elif what == "presets":
        presets = sorted(PRESETS.glob("*.yaml"))
        rows = [(path.stem, _heading(path)) for path in presets]
    else:
        kind = what.removesuffix("s")
        rows = [row for name in registered(kind) if (row := _row(kind, name))]
    width = max((len(row[0]) for row in rows), default=0) + 2
    for name, *facts in rows:
        print(f"{name:<{width}}{'; '.join(facts)}")
    if what == "methods":
        print_variants([row[0] for row in rows])
    if what == "tasks":
        print_features()
    if what == "backbones":
        print_families()


def print_features() -> None:
    """Print the feature spaces of the worlds, in which the diversity of every task's images is measured."""
    print("\ndiversity of images is measured in a feature space of their world (scorers.features.model=none: nowhere):")
    for world in registered("features"):
        if row := _row("features", world):
            print(f"    {world:<10}{row[1]}")


def print_families() -> None:
    """Print the classes of pipelines that --backbone takes as an address, and their families."""
    print("\npipelines of these classes, given as a folder in diffusers' format or hub:OWNER/REPO:")
    for name, family in families().items():
        also = "; also in a single .safetensors file" if family.reads else ""
        for pipeline in family.pipelines:
            print(f"    {pipeline:<36}family {name}{also}")


def print_variants(methods: list[str]) -> None:
    """Print the settings that choose between published methods, each once, with the methods that have them."""
    having: dict[tuple[str, str], list[str]] = {}
    for name in methods:
        if not rivals("method", name):
            for item in find("method", name).all_variants().items():
                having.setdefault(item, []).append(name)
    listed: list[str] = []
    for (setting, source), names in having.items():
        if names != listed:
            print(f"\nsettings of {', '.join(names)}:")
            listed = names
        print(f"    {setting:<36}{source}")


def _row(kind: str, name: str) -> tuple[str, ...] | None:
    """(name, facts...) of a registered object; None, after a note on stderr, if it cannot be imported."""
    if packages := rivals(kind, name):
        return name, f"cannot be used: registered more than once, by {packages}"
    try:
        return name, *FACTS[kind](name)
    except BenchError as error:
        leave_out(error)
        return None


def _kernel(kernel: Kernel) -> tuple[str, ...]:
    noise = "deterministic" if kernel.eta_max == 0 else f"eta 0 to {kernel.eta_max:g}"
    return kernel.name, noise, kernel.source


def _method(name: str) -> tuple[str, ...]:
    method = find("method", name)
    return method.source, _needs(method.needs), *([] if method.in_all else ["not in all"])


def _task(name: str) -> tuple[str, ...]:
    task = find("task", name)
    counted = ["in all"] if task.in_all else []
    return f"version {task.version}", *counted, f"headline {task.headline}: {_about(name, task)}"


def _backbone(name: str) -> tuple[str, ...]:
    descriptor = describe(name)
    return f"world {descriptor.world}", str(descriptor.levels_at(PLAIN))


def _features(world: str) -> tuple[str, ...]:
    return (_about("features", find("features", world)),)


FACTS = {"method": _method, "task": _task, "backbone": _backbone, "features": _features}


def _heading(path: Path) -> str:
    """A preset's opening comment, which says what it is and where it comes from."""
    lines = takewhile(lambda line: line.startswith("#"), read_lines(path))
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _about(name: str, task) -> str:
    """The first line of a task's docstring, which another package's may lack, then one line per scorer setting."""
    docstring = (task.__doc__ or "").strip()
    settings = [f"\n    scorers.{name}.{key}: {meaning}" for key, meaning in task.sources.items()]
    return docstring.partition("\n")[0] + "".join(settings)


def _needs(needs) -> str:
    wanted = [need for need in ("teachers", "rewards", "stochastic") if getattr(needs, need)]
    return f"needs {', '.join(wanted)}" if wanted else "no special needs"
