"""`bench list`: what is registered, one line each."""

from itertools import takewhile
from pathlib import Path

from bench.config.resolve import PRESETS
from bench.errors import unknown
from bench.registry import find, registered
from bench.sampler.transitions import KERNELS
from bench.system.files import read_lines

KINDS = ("methods", "tasks", "backbones", "kernels", "presets")


def print_list(what: str) -> None:
    """Print names with one fact each. Raises UsageError for an unknown kind."""
    if what not in KINDS:
        raise unknown("list", what, KINDS)
    if what == "kernels":
        rows = [
            (k.name, ("deterministic" if k.eta_max == 0 else f"eta 0 to {k.eta_max:g}"), k.source)
            for k in KERNELS.values()
        ]
    elif what == "presets":
        rows = [(path.stem, _heading(path)) for path in sorted(PRESETS.glob("*.yaml"))]
    elif what == "methods":
        rows = [
            (name, find("method", name).source, _needs(find("method", name).needs)) for name in registered("method")
        ]
    elif what == "tasks":
        tasks = {name: find("task", name) for name in registered("task")}
        rows = [
            (n, f"version {t.version}", *(["in all"] if t.in_all else []), f"headline {t.headline}: {_about(n, t)}")
            for n, t in tasks.items()
        ]
    else:
        found = {name: find("backbone", name)() for name in registered("backbone")}
        rows = [(n, f"world {d.world}", f"shift {d.shift:g}") for n, d in found.items()]
    width = max(len(row[0]) for row in rows) + 2
    for name, *facts in rows:
        print(f"{name:<{width}}{'; '.join(facts)}")


def _heading(path: Path) -> str:
    """A preset's opening comment: what it is and where it comes from."""
    lines = takewhile(lambda line: line.startswith("#"), read_lines(path))
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _about(name: str, task) -> str:
    """The first line of a task's docstring, which another package's may lack, and what may be said of its scorer."""
    settings = (f"\n    scorers.{name}.{key}: {meaning}" for key, meaning in task.sources.items())
    return (task.__doc__ or "").strip().partition("\n")[0] + "".join(settings)


def _needs(needs) -> str:
    wanted = [n for n in ("teachers", "rewards", "stochastic") if getattr(needs, n)]
    return f"needs {', '.join(wanted)}" if wanted else "needs nothing more"
