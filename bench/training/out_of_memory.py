"""Running out of memory: errors that name the settings with which the run would fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from bench.backbones.teacher_files import whole_teachers
from bench.config.compute import Compute
from bench.config.contradictions import leaves
from bench.config.resolve import describe
from bench.config.rewards import all_scorers
from bench.errors import BenchError
from bench.registry import find

if TYPE_CHECKING:
    from bench.config.spec import Spec

SCORERS = "a lower scorers.<task>.batch, or .device or .url to score elsewhere"
"""Stands for SCORERS settings outside a run, where the tasks are not known."""
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Appears in the RuntimeError that torch raises when host memory is exhausted."""


@contextmanager
def memory(phase: str, spec: "Spec") -> Iterator[None]:
    """Turn a failed allocation into a BenchError naming the settings to change.

    `phase`: loading, training or evaluation.
    """
    with allocating(lambda: exhausted(phase, spec)):
        yield


@contextmanager
def memory_of(compute: Compute, batch: int, device: str, backbone: str) -> Iterator[None]:
    """Like `memory`, for images drawn outside a run, `batch` at a time."""
    tried = [f"compute.batch={batch // 2}" if batch > 1 else "", precision(compute)]
    if beside(backbone):
        sliced = "compute.decode=sliced" if compute.decode == "whole" else ""
        tried += [sliced, resolution(compute), SCORERS]
    settings = ", ".join(filter(None, tried))
    cure = f"try --set with {settings}" if settings else "this machine has too little memory for it"
    with allocating(lambda: BenchError(f"out of memory on {device}; {cure}")):
        yield


@contextmanager
def allocating(cause: Callable[[], BenchError]) -> Iterator[None]:
    """Raise `cause()` if an allocation inside fails, on the GPU or on the CPU."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise cause() from error
    except RuntimeError as error:
        if CPU_ALLOCATOR not in str(error):  # torch has no exception type of its own for host memory
            raise
        raise cause() from error


def exhausted(phase: str, spec: "Spec") -> BenchError:
    """The error for a phase, with settings in the order in which to try them.

    Settings with which the run can resume come first, then those that change its hash and so start a new run.
    """
    compute, method = spec.compute, find("method", spec.method)
    new = [precision(compute), *smaller_pictures(spec)]
    elsewhere = [*offloading(spec), *scorers(spec)]
    if phase == "training":
        checkpointing = "" if compute.gradient_checkpointing else "compute.gradient_checkpointing=true"
        decoded = decoding(spec) if method.needs.rewards else []
        same = [checkpointing, fewer_drawn(spec), *decoded, *elsewhere]
        full = "full_finetuning=false" if spec.full_finetuning else ""
        new = [*smaller_updates(spec), *new, full]
    elif phase == "evaluation":
        batch = lower("evaluation.batch", spec.evaluation.batch)
        same = [batch, fewer_drawn(spec), *decoding(spec), *elsewhere]
    else:
        same = [*offloading(spec), *scorers(spec, ("device", "url"))]
    return BenchError(f"out of memory on {spec.device} in {phase}; {cures(same, new)}")


def cures(same: list[str], new: list[str]) -> str:
    """Advice from settings that keep the run and settings that make it a new one; empty entries are left out."""
    to_resume = ", ".join(filter(None, same))
    to_restart = ", ".join(filter(None, new))
    if to_resume and to_restart:
        return f"resume with --set {to_resume}; or start a new run with {to_restart}"
    if to_resume:
        return f"resume with --set {to_resume}"
    return f"start a new run with --set {to_restart}" if to_restart else "this machine has too little memory for it"


def lower(name: str, now: object, most: int = 0) -> str:
    """Advice to lower a setting, with its current value; empty if it cannot be lowered.

    `most`: the value from which lowering has an effect, 0 if unknown.
    """
    if not isinstance(now, int) or min(now, most or now) <= 1:
        return ""
    below = f" below {most}" if most and now > most else ""
    return f"a lower {name} (now {now}){below}"


def smaller_updates(spec: "Spec") -> list[str]:
    """Lower values of the method's own settings; sections of its options that are not in use are left out."""
    method = find("method", spec.method)
    options = method.Options.model_validate(spec.params)
    lowers = method.lowers_memory
    used = [name for name in lowers if name.partition(".")[0] not in options.idle]
    work = method.work(spec, describe(spec.backbone).sampler(spec))
    # Only the first of these settings is bounded by how many samples the method trains on at once.
    most = [work.trained_at_once if work else 0, *(0 for _ in used[1:])]
    now = leaves(options.model_dump(), "params.")
    names = [f"params.{name}" for name in used]
    return [lower(name, now.get(name), bound) for name, bound in zip(names, most)]


def fewer_drawn(spec: "Spec") -> str:
    """Draw fewer images at once."""
    now = spec.compute.batch
    return "" if now == 1 else f"a lower compute.batch (now {now or 'all at once'})"


def precision(compute: Compute) -> str:
    """Half precision, unless it is in use."""
    return "compute.precision=bfloat16" if compute.precision == "float32" else ""


def beside(backbone: str) -> bool:
    """Whether large text encoders, a VAE and scorers share the device with the transformer.

    True for backbones that state a size, which are those whose GPU-hours can be predicted.
    """
    return describe(backbone).size is not None


def decoding(spec: "Spec") -> list[str]:
    """Decode image by image, unless that is done already."""
    applies = spec.compute.decode == "whole" and beside(spec.backbone)
    return ["compute.decode=sliced"] if applies else []


def offloading(spec: "Spec") -> list[str]:
    """Keep text encoders and whole teachers in host memory, unless they are there or everything runs on the CPU."""
    if spec.device == "cpu":
        return []
    compute = spec.compute
    encoders = not compute.offload_text_encoders and beside(spec.backbone)
    teachers = not (compute.offload_teachers or compute.shard) and len(whole_teachers(spec.teachers)) > 1
    useful = {"compute.offload_text_encoders=true": encoders, "compute.offload_teachers=true": teachers}
    return [setting for setting, helps in useful.items() if helps]


def smaller_pictures(spec: "Spec") -> list[str]:
    """A lower resolution, if the backbone supports more than one."""
    return [resolution(spec.compute)] if beside(spec.backbone) else []


def resolution(compute: Compute) -> str:
    """Advice to lower the resolution, with its current value."""
    return f"a lower compute.resolution (now {compute.resolution or 'the size the model was made for'})"


def scorers(spec: "Spec", which: tuple[str, ...] = ("batch", "device", "url")) -> list[str]:
    """Settings of the tasks' scorers that take memory off this device.

    Every task can be scored at a URL; a scorer states whether it supports a batch size or a device.
    """
    if not beside(spec.backbone):
        return []
    cures = []
    for task in all_scorers(spec.tasks, spec.rewards):
        given = spec.scorers.get(task, {})
        known = find("task", task).sources
        if "url" in given:
            continue
        if "batch" in which and "batch" in known:
            cures.append(f"a lower scorers.{task}.batch")
        if "device" in known and spec.device != "cpu" and given.get("device") != "cpu":
            cures.append(f"scorers.{task}.device=cpu")
        cures.append(f"scorers.{task}.url to score elsewhere")
    return cures
