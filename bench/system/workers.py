"""The processes of one run, one a GPU, started by `accelerate launch` or `torchrun`.

Every process holds the whole model and trains on its share of an update's prompts. Gradients of the adapter are summed
once an update, after all tasks' backward passes: DistributedDataParallel would reduce after each of them, and expects
one forward of one set of parameters, where here adapters take turns.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

from bench.errors import UsageError

Value = TypeVar("Value")
RENDEZVOUS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What every launcher of several processes sets beside WORLD_SIZE."""
PATIENCE = timedelta(hours=6)
"""How long processes wait for one another: one of them may be summarising, or scoring on the CPU."""


@dataclass(frozen=True)
class Workers:
    """This process among those of its run."""

    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.index == 0

    def shard(self, total: int) -> range:
        """This process's part of `total` things: contiguous, of sizes that differ by at most one."""
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)

    def most(self, total: int) -> int:
        """How many of `total` things the process with the largest share has."""
        return -(-total // self.count)

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, in order of processes, in every process."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def agreed(self, value: Value) -> Value:
        """The main process's value in every process."""
        return cast(Value, self.gather(value if self.main else None)[0])  # the main process is the first

    def add(self, tensors: Iterable) -> None:
        """Replace tensors, in place, by their sums over the processes."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))

    def device(self, name: str) -> str:
        """This process's device: "cuda" is the GPU of its own number on this machine."""
        if self.count == 1 or name != "cuda":
            return name
        return f"cuda:{os.environ['LOCAL_RANK']}"


ALONE = Workers()


CURE = "start with torchrun or accelerate launch, or unset it"


def launched(name: str, least: int) -> int:
    """A number that a launcher puts into the environment; `least` if it is not there. Raises UsageError for none."""
    text = os.environ.get(name) or str(least)
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise UsageError(f"{name}={text} in the environment is no number from {least} up: {CURE}")
    return int(text)


def connect(device: str) -> Workers:
    """Join the processes that the launcher started, if several.

    Raises UsageError for the name of a single GPU, and for an environment that no launcher makes.
    """
    if (count := launched("WORLD_SIZE", 1)) == 1:
        return ALONE
    if device not in ("cpu", "cuda"):
        raise UsageError(f"several processes each have a GPU of their own: device=cuda, not {device}")
    if missing := [name for name in RENDEZVOUS if not os.environ.get(name)]:
        raise UsageError(
            f"WORLD_SIZE={count} is set but nothing launched these processes ({missing[0]} is not set): {CURE}"
        )
    for name in ("RANK", "LOCAL_RANK"):
        if launched(name, 0) >= count:
            raise UsageError(f"{name}={os.environ[name]} is not below WORLD_SIZE={count}: {CURE}")
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    return Workers(state.process_index, state.num_processes)
