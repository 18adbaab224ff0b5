"""A worker whose trials take a moment and train nothing; test_worker.py runs it in processes of its own."""

import os
import time
from pathlib import Path

from sweeps.measure import Measured
from sweeps.storage import Place
from sweeps.study import read_study
from sweeps.worker import work


def value(chosen: dict) -> float:
    """Best at learning rate 1e-3."""
    return 1 - abs(chosen["optimizer.lr"] - 1e-3)


def fast(spec, place: Place, chosen: dict, reached) -> Measured:
    time.sleep(0.05)
    with (place.folder / "carried-out.txt").open("a") as file:
        file.write(f"{os.getpid()} {chosen['optimizer.lr']!r}\n")
    time.sleep(0.05)
    return Measured({"ocr": [value(chosen)]}, [])


def main(file: Path, folder: Path) -> None:
    work(read_study(file), Place(folder), carry_out=fast)
