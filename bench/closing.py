"""The page that closes a comparison or a study."""

from pathlib import Path

from bench.registry import find


def write_report(record: Path, folder: Path) -> None:
    """Make the report of a comparison's or a study's record with the command `report`; prints the page's path."""
    find("command", "report")([record], folder, None)
