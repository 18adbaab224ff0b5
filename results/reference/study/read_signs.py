"""RapidOCR's reading of the signs of final students: python results/reference/study/read_signs.py WORLD SEED...

Draws the test images of ocr again for every line of part 1 (PROTOCOL.md), at the guidance scale that its run has
chosen, and writes a row per model to part1/rapidocr.csv: the fraction of signs that RapidOCR reads exactly, beside that
of the world's own reader, whose answers have to be those of the run. Needs the finished runs with their adapters, in
results/study/WORLD. Rows of other worlds and seeds are kept.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from bench.analysis.records import design
from bench.analysis.stats import estimate
from bench.errors import MissingError, exit_on_error
from bench.results import Result, results
from bench.system.files import write_atomic

LINES = ("opd_analytic", "multi_reward", "cascade")
METRICS = ("exact", "rapidocr_exact")
IDENTITY = ["world", "model", "method", "nfe", "seed"]
OUTPUT = Path(__file__).parent / "part1" / "rapidocr.csv"


def drawn(run: Result, model: str, folder: Path) -> dict:
    """The record of `bench eval` for the base or the student of a run, made once and kept in `folder`."""
    adapter = "base" if model == "base" else str(run.folder / "adapter")
    output = folder / f"{'base' if model == 'base' else run.folder.name}.json"
    if not output.exists():
        scale = f"{run.summary['guidance'][model]['ocr']:g}"
        words = ["--adapter", adapter, "--backbone", run.spec["backbone"], "--tasks", "ocr", "--guidance", scale]
        command = [sys.executable, "-m", "bench", "eval", *words, "--output", str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (record,) = json.loads(output.read_text())
    return record


def told(run: Result, model: str, record: dict) -> dict:
    """A model's row of the table. Raises ValueError if the world's reader answers otherwise than in the run."""
    if record["rows"]["exact"] != run.summary["models"][model]["ocr"]["rows"]["exact"]:
        raise ValueError(f"{model} of {run.folder.name}: these are not the images of the run")
    spec = run.spec
    row = {"world": spec["backbone"], "model": model, "method": "", "seed": "", "nfe": 0}
    if model != "base":
        row |= {"method": spec["method"], "seed": str(spec["seed"]), "nfe": spec["budget"]["nfe"]}
    for metric in METRICS:
        found = estimate(np.array(record["rows"][metric], float), design(record))
        row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
    return row


def table(runs: list[Result], folder: Path) -> pd.DataFrame:
    """The base and the students of all runs."""
    models = [(runs[0], "base"), *((run, "student") for run in runs)]
    return pd.DataFrame([told(run, model, drawn(run, model, folder)) for run, model in models])


def merged(made: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table with the rows that the file at `path`, if there is one, has of other models."""
    if not path.is_file():
        return made
    before = pd.read_csv(path, keep_default_na=False, dtype={"seed": str})
    return pd.concat([before, made]).drop_duplicates(IDENTITY, keep="last").sort_values(IDENTITY)


def main() -> None:
    """Read what is not read yet, and write the table. Raises MissingError without finished runs of these seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", help="backbone of the runs")
    parser.add_argument("seeds", type=int, nargs="+")
    given = parser.parse_args()
    root = Path("results/study")
    kept = root / "rapidocr" / given.world
    chosen = [
        run
        for run in results(root / given.world)
        if run.summary and run.spec["method"] in LINES and run.spec["seed"] in given.seeds
    ]
    if not chosen:
        raise MissingError(f"no finished run of these seeds is in {root / given.world}: run part1.sh first")
    kept.mkdir(parents=True, exist_ok=True)
    made = merged(table(chosen, kept), OUTPUT)
    write_atomic(OUTPUT, made.to_csv(index=False, float_format="%.6g").encode())


if __name__ == "__main__":
    exit_on_error(main)
