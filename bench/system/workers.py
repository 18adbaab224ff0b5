"""The processes of one run, one per GPU, started by `accelerate launch` or `torchrun`.

Every process has the complete model and trains on its shard of an update's prompts. Gradients of the adapter are summed
once per update, after the backward passes of all tasks. DistributedDataParallel would reduce them after each pass, and
it expects a single forward pass through fixed parameters, whereas here adapters take turns.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

from bench.errors import BenchError, UsageError, one_line

Value = TypeVar("Value")
RENDEZVOUS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that a launcher of several processes sets in addition to WORLD_SIZE."""
HIGHEST_PORT = 65535
PATIENCE = timedelta(hours=6)
"""How long processes wait for each other. One of them may be summarising, or scoring on the CPU."""


@dataclass(frozen=True)
class Workers:
    """This process's position among the processes of its run."""

    index: int = 0
    """Rank of this process."""
    count: int = 1
    """Number of processes."""

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.index == 0

    def shard(self, total: int) -> range:
        """Return this process's indices of `total` items: contiguous, with sizes that differ by at most one."""
        start = self.index * total // self.count
        stop = (self.index + 1) * total // self.count
        return range(start, stop)

    def most(self, total: int) -> int:
        """Return the size of the largest shard of `total` items."""
        return -(-total // self.count)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes in order of rank. Every process must call this."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def agreed(self, value: Value) -> Value:
        """Return the main process's value. Every process must call this."""
        values = self.gather(value if self.main else None)
        return cast(Value, values[0])

    def add(self, tensors: Iterable) -> None:
        """Replace tensors of one dtype and device, in place, by their sums over the processes."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        # One reduction of a flat tensor is faster than one per tensor.
        tensors = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, total in zip(tensors, flat.split(sizes)):
            tensor.copy_(total.view_as(tensor))

    def device(self, name: str) -> str:
        """Return this process's device: for "cuda" in a run with several processes, the GPU of its local rank."""
        if self.count == 1 or name != "cuda":
            return name
        return f"cuda:{os.environ['LOCAL_RANK']}"


ALONE = Workers()
"""The only process of its run."""


CURE = "start with torchrun or accelerate launch, or unset it"


def launched(name: str, least: int) -> int:
    """Return an integer that a launcher sets in the environment, or `least` if it is not set.

    Raises UsageError for any other value, and for a number below `least`.
    """
    text = os.environ.get(name) or str(least)
    # int would also accept a sign, spaces, underscores and digits of other scripts.
    plain = text.isascii() and text.isdecimal()
    if not plain or int(text) < least:
        raise UsageError(f"{name}={text} in the environment is not an integer of at least {least}: {CURE}")
    return int(text)


def refuse_several(command: str) -> None:
    """Raise UsageError if a launcher started several processes of a command that would do all its work in each."""
    if (count := launched("WORLD_SIZE", 1)) > 1:
        raise UsageError(f"bench {command} works in one process, not {count}: start it without a launcher")


def connect(device: str) -> Workers:
    """Join the processes of this run if a launcher has started several.

    Raises UsageError for the name of a single GPU, and for an environment that a launcher cannot have set; BenchError
    if the processes cannot meet at the address that it names.
    """
    count = launched("WORLD_SIZE", 1)
    if count == 1:
        return ALONE
    if device not in ("cpu", "cuda"):
        raise UsageError(f"each process of a run uses its own GPU: use device=cuda, not {device}")
    missing = [name for name in RENDEZVOUS if not os.environ.get(name)]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={count} is set but nothing launched these processes ({missing[0]} is not set): {CURE}"
        )
    for name in ("RANK", "LOCAL_RANK"):
        if launched(name, 0) >= count:
            raise UsageError(f"{name}={os.environ[name]} is not below WORLD_SIZE={count}: {CURE}")
    address, port = os.environ["MASTER_ADDR"], launched("MASTER_PORT", 1)
    if port > HIGHEST_PORT:
        raise UsageError(f"MASTER_PORT={port} in the environment is above {HIGHEST_PORT}: {CURE}")
    import torch.distributed as dist
    from accelerate import PartialState

    try:
        state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    except dist.DistError as error:
        # A port that another program, or an earlier run's process, listens on; an address that is no machine's.
        raise BenchError(
            f"the processes of this run cannot meet at {address}:{port} ({one_line(error)}); end what uses that port, "
            "or launch with another (torchrun --master-port, accelerate launch --main_process_port)"
        ) from error
    return Workers(state.process_index, state.num_processes)
