"""Running out of memory, said as which settings would help."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from bench.backbones.compute import Compute
from bench.errors import BenchError
from bench.registry import find

if TYPE_CHECKING:
    from bench.spec import Spec

SCORERS = "a lower scorers.<task>.batch, or .device or .url to score elsewhere"
CPU_ALLOCATOR = "DefaultCPUAllocator"


@contextmanager
def memory(phase: str, spec: "Spec") -> Iterator[None]:
    """Turn a failed allocation in a phase (loading, training, evaluation) into a BenchError that names the settings."""
    with allocating(lambda: exhausted(phase, spec)):
        yield


@contextmanager
def memory_of(compute: Compute, batch: int, device: str) -> Iterator[None]:
    """As `memory`, where pictures are drawn outside a run, `batch` at a time."""
    fewer = f"compute.batch={max(1, batch // 2)}"
    bits = "compute.precision=bfloat16" if compute.precision == "float32" else ""
    cures = [fewer, bits, "compute.decode=sliced", "compute.resolution=512", SCORERS]
    with allocating(lambda: BenchError(f"out of memory on {device}; try --set with {', '.join(filter(None, cures))}")):
        yield


@contextmanager
def allocating(cause: Callable[[], BenchError]) -> Iterator[None]:
    """Raise `cause()` for an allocation that fails, on a GPU or on the CPU."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise cause() from error
    except RuntimeError as error:
        if CPU_ALLOCATOR not in str(error):
            raise
        raise cause() from error


def exhausted(phase: str, spec: "Spec") -> BenchError:
    """The error, with settings in the order in which to try them."""
    compute = spec.compute
    offload = "" if compute.offload_text_encoders else "compute.offload_text_encoders=true"
    decode = "compute.decode=sliced" if compute.decode == "whole" else ""
    batch = f"a lower compute.batch (now {compute.batch or 'all at once'})"
    another = ["compute.precision=bfloat16" if compute.precision == "float32" else ""]
    if phase == "training":
        recompute = "" if compute.gradient_checkpointing else "compute.gradient_checkpointing=true"
        same = [recompute, batch, decode, offload, SCORERS]
        settings = find("method", spec.method).memory_settings(spec)
        another = [*(f"a lower {name} (now {value(spec, name)})" for name in settings), *another]
    elif phase == "evaluation":
        same = [f"a lower evaluation.batch (now {spec.evaluation.batch})", batch, decode, offload, SCORERS]
    else:
        same = [offload, SCORERS]
    restart = f"; or, as another run, {listed}" if (listed := ", ".join(filter(None, another))) else ""
    return BenchError(
        f"out of memory on {spec.device} in {phase}; go on with --set {', '.join(filter(None, same))}{restart}"
    )


def value(spec: "Spec", name: str) -> object:
    """A dotted setting of a spec."""
    found: object = spec.model_dump()
    for part in name.split("."):
        found = found[part]
    return found
