"""Work for the jobs of tests: another process finds it by its name."""

from pathlib import Path

from bench.errors import UsageError


def speak(work: dict, root: Path) -> None:
    """Print what is to be said, or fail."""
    if "fails" in work:
        raise UsageError(work["fails"])
    print(work.get("says", ""))
