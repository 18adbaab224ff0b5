"""What a shell completes: names of methods, tasks, backbones and presets, also the last of several after a comma."""

from collections.abc import Callable, Iterable


def registered_names(kind: str) -> Callable[[str], list[str]]:
    """A completion of the registered names of a kind (bench/registry.py); nothing is imported for it."""

    def complete(incomplete: str) -> list[str]:
        from bench.registry import registered

        return beginning(incomplete, registered(kind))

    return complete


def presets(incomplete: str) -> list[str]:
    """The names of presets."""
    from bench.config.resolve import PRESETS

    return beginning(incomplete, (path.stem for path in PRESETS.glob("*.yaml")))


def kinds(incomplete: str) -> list[str]:
    """What `bench list` lists."""
    from bench.cli.list import KINDS

    return beginning(incomplete, KINDS)


def beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    """The completions of a word, or of the last one of several with commas between them."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{name}" for name in sorted(names) if name.startswith(last) and name not in given]
