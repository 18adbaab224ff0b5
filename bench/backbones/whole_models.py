"""Whole networks beside the student's, by name: teachers that are models of their own instead of adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bench.backbones.pipeline_files import require_whole
from bench.backbones.pipeline_parts import not_loaded, part_of
from bench.errors import BenchError, UsageError
from bench.weights.checkpoints import read_config

if TYPE_CHECKING:
    from torch import Tensor


class WholeModels:
    """Frozen networks by name. All are on the device, or with `offload` only the one that is in use."""

    def __init__(self, device: torch.device, offload: bool):
        self.device, self.offload = device, offload
        self._networks: dict[str, nn.Module] = {}
        self._host: dict[str, list[tuple[dict, str, Tensor]]] = {}
        """Where each tensor of an offloaded network belongs, and the tensor in host memory."""
        self._in_use: str | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._networks

    def add(self, name: str, network: nn.Module, place: Callable[[nn.Module], object]) -> None:
        """Keep a frozen network, which is in host memory. `place` brings it to the device unless it is offloaded."""
        self._networks[name] = network
        if not self.offload:
            place(network)
            return
        held: list[dict] = [own for part in network.modules() for own in (part._parameters, part._buffers)]
        self._host[name] = [(own, key, own[key]) for own in held for key in own if own[key] is not None]

    def use(self, name: str) -> nn.Module:
        """The network, on the device. An offloaded one takes the place of the one that was used before."""
        if self.offload and name != self._in_use:
            # Frozen weights need not be copied back: the host still has them.
            for own, key, tensor in self._host.get(self._in_use or "", []):
                own[key] = tensor
            for own, key, tensor in self._host[name]:
                moved = tensor.to(self.device)
                own[key] = nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
            self._in_use = name
        return self._networks[name]


def require_kind(kind: type, folder: Path) -> None:
    """Raise UsageError unless a folder holds a network of this class, and classes of this kind can be read at all."""
    if not hasattr(kind, "from_pretrained"):
        raise UsageError(f"{folder}: this backbone's network, a {kind.__name__}, cannot be read from a folder")
    name = read_config(folder / "config.json").get("_class_name")
    if name != kind.__name__:
        raise UsageError(f"{folder} holds a {name}; a model for this backbone is an adapter or a {kind.__name__}")


def read_network(kind: type, folder: Path, dtype: torch.dtype) -> nn.Module:
    """The network in a folder in diffusers' format, frozen and in host memory; `kind` is the class of the student's.

    Raises UsageError for another class and for quantised weights, MissingError for missing files, and DamagedError for
    files that are corrupt or do not match their configuration.
    """
    require_whole(folder)
    require_kind(kind, folder)
    try:
        return part_of(kind, str(folder.parent), folder.name, dtype=dtype).requires_grad_(False).eval()
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # diffusers can raise almost anything on unexpected files
        raise not_loaded(f"the teacher {folder}", str(folder), error) from error
