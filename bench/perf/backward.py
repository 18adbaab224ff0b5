"""What a backward pass to a LoRA adapter costs in forward passes: python -m bench.perf.backward [--backbone micro]

It differs from run to run: six on one thread of a Xeon with AVX-512 gave 1.08, 1.09, 1.10, 1.25, 1.30 and 1.32, and an
earlier measurement on another machine 1.26. Descriptor.backward_cost of `micro` is 1.25.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import thread_time

import torch

from bench.backbones.adapters import Shape
from bench.config.resolve import describe
from bench.errors import exit_on_error

BATCH, RANK, REPETITIONS = 96, 64, 8
NAME = "measured"


def seconds(work: Callable[[], object]) -> float:
    """Median processor time of this thread, which other processes do not lengthen as much as time on the wall."""
    work()
    found = []
    for _ in range(REPETITIONS):
        before = thread_time()
        work()
        found.append(thread_time() - before)
    return median(found)


def main() -> None:
    """Measure a registered backbone on the CPU, with one thread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="micro", help="name of a registered backbone (default micro)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = describe(arguments.backbone).load("cpu")
    backbone.adapters.add(NAME, Shape(RANK, 2.0 * RANK), trainable=True)
    conditioning = backbone.encode(["a photo of a red circle and a blue square"] * BATCH)
    x = backbone.noise(BATCH, torch.Generator().manual_seed(0))

    def velocity() -> torch.Tensor:
        return backbone.velocity(x, 0.5, conditioning, NAME, 1.0)

    @torch.no_grad()
    def forward() -> None:
        velocity()

    def both() -> None:
        velocity().square().mean().backward()

    alone, trained = seconds(forward), seconds(both)
    print(f"{arguments.backbone}: a forward pass of one latent takes {alone / BATCH * 1e3:.2f} ms of one thread;")
    print(f"its backward pass to an adapter of rank {RANK} costs {trained / alone - 1:.2f} forward passes")


if __name__ == "__main__":
    exit_on_error(main)
