"""The page that closes a comparison or a study."""

import sys
from pathlib import Path

from bench.errors import explained
from bench.registry import find


def write_report(record: Path, folder: Path) -> None:
    """Make the report of a comparison's or a study's record with the command `report`; prints the page's path.

    Where it cannot be made a line says why: the result that it would show is there without it.
    """
    try:
        find("command", "report")([record], folder, None)
    except Exception as error:  # whatever it is, a page is worth no finished comparison
        print(f"no report: {explained(error)}", file=sys.stderr)
