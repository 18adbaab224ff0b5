"""The report that a comparison or a study ends with."""

import sys
from pathlib import Path

from bench.errors import explained
from bench.registry import find


def write_report(record: Path, folder: Path) -> None:
    """Write the report of a comparison's or a study's record to `folder` with the command `report`; prints its path.

    If that fails, a line on stderr gives the reason and nothing is raised: the results are already stored.
    """
    try:
        find("command", "report")([record], folder, None)
    except Exception as error:  # of any kind: a failing page must not fail a finished comparison
        print(f"no report was written: {explained(error)}", file=sys.stderr)
