"""Running out of memory, said as which settings would help."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from bench.errors import BenchError
from bench.registry import find

if TYPE_CHECKING:
    from bench.spec import Spec

CPU_ALLOCATOR = "DefaultCPUAllocator"


@contextmanager
def memory(phase: str, spec: "Spec") -> Iterator[None]:
    """Turn a failed allocation in a phase (loading, training, evaluation) into a BenchError that names the settings."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise exhausted(phase, spec) from error
    except RuntimeError as error:
        if CPU_ALLOCATOR not in str(error):
            raise
        raise exhausted(phase, spec) from error


def exhausted(phase: str, spec: "Spec") -> BenchError:
    """The error, with settings in the order in which to try them."""
    compute = spec.compute
    fewer_bits = "compute.precision=bfloat16" if compute.precision == "float32" else ""
    offload = "" if compute.offload_text_encoders else "compute.offload_text_encoders=true"
    decode = {"whole": "compute.decode=sliced", "sliced": "compute.decode=tiled", "tiled": ""}[compute.decode]
    batch = f"a lower compute.batch (now {compute.batch or 'all at once'})"
    elsewhere = "scorers.<task>.device or .url, to score elsewhere"
    if phase == "training":
        recompute = "" if compute.gradient_checkpointing else "compute.gradient_checkpointing=true"
        lower = [f"a lower {name} (now {value(spec, name)})" for name in method_settings(spec)]
        cures = [fewer_bits, recompute, *lower, batch, decode, offload, elsewhere]
    elif phase == "evaluation":
        fewer = f"a lower evaluation.batch (now {spec.evaluation.batch})"
        cures = [fewer_bits, fewer, batch, decode, offload, elsewhere]
    else:
        cures = [fewer_bits, offload, elsewhere]
    return BenchError(f"out of memory on {spec.device} in {phase}; try --set with {', '.join(filter(None, cures))}")


def method_settings(spec: "Spec") -> tuple[str, ...]:
    """The method's own settings that lower memory."""
    return find("method", spec.method).memory_settings(spec)


def value(spec: "Spec", name: str) -> object:
    """A dotted setting of a spec."""
    found: object = spec.model_dump()
    for part in name.split("."):
        found = found[part]
    return found
