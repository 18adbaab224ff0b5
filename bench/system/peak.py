"""The most memory that a process and its device have used at once."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Linux: writing 5 to the first resets the peak that the second gives as VmHWM."""


class Peak:
    """Peak memory, in bytes, over the blocks that are measured: of a GPU as "device", of the process as "host"."""

    def __init__(self, device: "torch.device"):
        self.device = device
        self.bytes: dict[str, int] = {}

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Include what the block uses. Where the host's peak cannot be reset, it is that since the process began."""
        import torch

        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        with suppress(OSError):
            CLEAR.write_text("5")
        yield
        self.include({"host": _host()} | ({"device": torch.cuda.max_memory_allocated(self.device)} if cuda else {}))

    def include(self, others: dict[str, int]) -> None:
        """Take a peak that was measured elsewhere, in another process or before an interruption."""
        for place, size in others.items():
            self.bytes[place] = max(size, self.bytes.get(place, 0))


def gigabytes(peak: dict[str, int]) -> float:
    """A recorded peak as one number: of the GPU, or without one of the process."""
    return peak.get("device", peak["host"]) / 1e9


def _host() -> int:
    """Peak memory of this process in bytes."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
