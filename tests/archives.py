"""The archives of runs in results/reference."""

import json
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath


def unpack(path: Path, folder: Path) -> None:
    """By tar itself, which leaves nothing outside of the folder; Python's own filter against that needs 3.11.4."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "xJf", path, "-C", folder], check=True)


def members(paths: Iterable[Path], name: str) -> Iterator[tuple[PurePosixPath, str]]:
    """Place and text of every file of this name in archives."""
    for path in paths:
        with tarfile.open(path) as archive:
            for member in archive:
                if PurePosixPath(member.name).name == name:
                    yield PurePosixPath(member.name), archive.extractfile(member).read().decode()


def summaries(paths: Iterable[Path]) -> Iterator[dict]:
    """Of all finished runs in archives, without those of studies that tune."""
    for _, text in members(paths, "summary.json"):
        if "cost" in (found := json.loads(text)):
            yield found
