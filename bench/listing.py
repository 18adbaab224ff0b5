"""`bench list`: what is registered, one line each."""

from itertools import takewhile
from pathlib import Path

from bench.errors import unknown
from bench.registry import find, registered
from bench.sampler.transitions import KERNELS
from bench.spec import PRESETS

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
            (n, f"version {t.version}", f"headline {t.headline}: {t.__doc__.splitlines()[0]}{_settings(n, t.sources)}")
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
    lines = takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _settings(task: str, sources: dict[str, str]) -> str:
    """What may be said of a scorer, one line each."""
    return "".join(f"\n    scorers.{task}.{key}: {meaning}" for key, meaning in sources.items())


def _needs(needs) -> str:
    wanted = [n for n in ("teachers", "rewards", "stochastic") if getattr(needs, n)]
    return f"needs {', '.join(wanted)}" if wanted else "needs nothing more"
