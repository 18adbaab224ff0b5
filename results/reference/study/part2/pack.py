"""The records of a finished cell: python results/reference/study/part2/pack.py CELL TO writes TO/cell-CELL.tar.xz.

From the runs in results/study/part2, without weights and contact sheets. A cell of which a line has neither
finished nor is known to have failed (failed.csv) is refused.
"""

import argparse
import io
import tarfile
from pathlib import Path

from cell import numbered, place
from outcomes import failures, of_cell

from bench.errors import UsageError, exit_on_error
from bench.results import results
from bench.system.files import write_atomic

LEFT_OUT = ("lock", "sheet.png")


def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A file of a run, or None if the archive is to be without it."""
    name = Path(member.name).name
    return None if name.endswith(".safetensors") or name in LEFT_OUT else member


def pack(number: int, root: Path, to: Path) -> Path:
    """Write the archive of a cell whose runs are in `root`. Raises UsageError if something of it is missing."""
    cell = numbered(number)
    folder = place(root, cell)
    _, lacking = of_cell(cell, folder, failures())
    if lacking:
        raise UsageError("; ".join(lacking))
    path, content = to / f"{folder.name}.tar.xz", io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as archive:
        for run in results(folder):
            archive.add(run.folder, f"{folder.name}/{run.folder.name}", filter=kept)
    write_atomic(path, content.getvalue())
    return path


def main() -> None:
    """Pack one cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cell", type=int)
    parser.add_argument("to", type=Path)
    given = parser.parse_args()
    print(pack(given.cell, Path("results/study/part2"), given.to))


if __name__ == "__main__":
    exit_on_error(main)
