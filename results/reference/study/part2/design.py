"""The design of part 2: python results/reference/study/part2/design.py writes cells.csv beside it.

A D-optimal fraction of the full factorial of 972 cells, for a model with all main effects and the interactions that the
protocol's statements are about, found by coordinate exchange (Meyer and Nachtsheim 1995) from 20 random starts. Which
planes of attributes a cell's pairs of tasks have is then shared out, so that no number of tasks goes with an attribute.
"""

import csv
from itertools import combinations, product
from pathlib import Path

import numpy as np

from bench.errors import exit_on_error
from tasks.taste import PLANES

FACTORS = {
    "overlap": ("none", "half", "all"),
    "angle": (0, 90, 180),
    "tasks": (2, 4, 6),
    "rank": (4, 64),
    "budget": (0.25, 1.0),
    "teachers": (0.25, 0.5, 1.0),
    "world": (1, 2, 3),
}
INTERACTIONS = (("overlap", "angle"), ("overlap", "tasks"), ("tasks", "rank"), ("angle", "teachers"))
CELLS, STARTS, SEED = 36, 20, 20261128
DRAWS = 5_000
"""Ways of sharing out the planes, of which the best for the model is taken."""


def contrasts(levels: int) -> np.ndarray:
    """Orthonormal contrasts of a factor, [levels, levels - 1]: sum to zero, mean square 1."""
    q, _ = np.linalg.qr(np.column_stack([np.ones(levels), np.eye(levels)[:, : levels - 1]]))
    return q[:, 1:] * np.sqrt(levels)


CODES = {name: contrasts(len(levels)) for name, levels in FACTORS.items()}


def row(cell: dict[str, int]) -> np.ndarray:
    """The model's terms for a cell, given by the index of each factor's level."""
    main = {name: CODES[name][index] for name, index in cell.items()}
    pairs = [np.outer(main[a], main[b]).ravel() for a, b in INTERACTIONS]
    return np.concatenate([[1.0], *main.values(), *pairs])


def quality(cells: list[dict[str, int]]) -> float:
    """Log determinant of the information matrix per cell; 0 for the full factorial."""
    x = np.stack([row(cell) for cell in cells])
    sign, value = np.linalg.slogdet(x.T @ x / len(cells))
    return value if sign > 0 else -np.inf


def exchanged(cells: list[dict[str, int]]) -> tuple[float, list[dict[str, int]]]:
    """Change one factor of one cell at a time as long as that improves the design."""
    best, improved = quality(cells), True
    while improved:
        improved = False
        for cell, name in product(cells, FACTORS):
            for index in range(len(FACTORS[name])):
                before = cell[name]
                cell[name] = index
                value = quality(cells)
                if value > best + 1e-9:
                    best, improved = value, True
                else:
                    cell[name] = before
    return best, cells


def shares(planes: tuple[str, ...]) -> list[float]:
    """How much a cell has of the first two planes, less what it has of the third."""
    *first, last = (float(plane in planes) / len(planes) for plane in PLANES)
    return [share - last for share in first]


def with_planes(cells: list[dict[str, int]], rng: np.random.Generator) -> list[tuple[str, ...]]:
    """The planes of every cell: choices for a number of tasks equally often, with the least aliasing of all draws."""
    fixed = np.stack([row(cell) for cell in cells])
    best, chosen = -np.inf, []
    for _ in range(DRAWS):
        drawn: list[tuple[str, ...]] = [()] * len(cells)
        for index, tasks in enumerate(FACTORS["tasks"]):
            choices = [*combinations(PLANES, int(tasks) // 2)]
            rng.shuffle(choices)
            for nth, place in enumerate(rng.permutation([i for i, c in enumerate(cells) if c["tasks"] == index])):
                drawn[place] = tuple(choices[nth % len(choices)])
        x = np.column_stack([fixed, [shares(planes) for planes in drawn]])
        value = np.linalg.slogdet(x.T @ x)[1]
        if value > best:
            best, chosen = value, drawn
    return chosen


def main() -> None:
    """Find the design and write it, in random order."""
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(STARTS):
        start = [{name: int(rng.integers(len(levels))) for name, levels in FACTORS.items()} for _ in range(CELLS)]
        found.append(exchanged(start))
    best, cells = max(found, key=lambda pair: pair[0])
    terms = len(row(cells[0]))
    print(f"{CELLS} cells, {terms} terms, D-efficiency {np.exp(best / terms):.3f}")
    with (Path(__file__).parent / "cells.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cell", *FACTORS, "planes"])
        shuffled = rng.permutation(np.array(cells, object)).tolist()
        for number, (cell, planes) in enumerate(zip(shuffled, with_planes(shuffled, rng))):
            writer.writerow([number, *(FACTORS[name][index] for name, index in cell.items()), "+".join(planes)])


if __name__ == "__main__":
    exit_on_error(main)
