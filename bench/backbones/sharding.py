"""Frozen weights split over the processes of a run by FSDP2; adapters, which are added later, stay whole in each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.config.compute import Compute
from bench.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn


def processes() -> int:
    """The number of processes of this run."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_split(compute: Compute) -> bool:
    """Whether a model with these settings is split: if they ask for it and there are several processes."""
    return compute.shard and processes() > 1


def shard(transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Leave this process its part of every weight, on `device`; all of them must call this.

    A forward pass then gathers the weights of a block before the block and drops them after it, and so does the
    backward pass. Every process must therefore make the same number of passes. The transformer must be frozen and
    without adapters: those that are added afterwards are not split. Raises UsageError if there are no blocks.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not blocks:
        raise UsageError("compute.shard gathers weights block by block, but this backbone does not name its blocks")
    mesh = init_device_mesh(device.type, (processes(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    # What is outside of the blocks, such as embeddings, is gathered in the first pass and kept.
    fully_shard(transformer, mesh=mesh)
