"""Running out of memory, said as which settings would help."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from bench.config.compute import Compute
from bench.config.contradictions import leaves
from bench.config.resolve import describe
from bench.errors import BenchError
from bench.registry import find

if TYPE_CHECKING:
    from bench.config.spec import Spec

SCORERS = "a lower scorers.<task>.batch, or .device or .url to score elsewhere"
CPU_ALLOCATOR = "DefaultCPUAllocator"


@contextmanager
def memory(phase: str, spec: "Spec") -> Iterator[None]:
    """Turn a failed allocation in a phase (loading, training, evaluation) into a BenchError that names the settings."""
    with allocating(lambda: exhausted(phase, spec)):
        yield


@contextmanager
def memory_of(compute: Compute, batch: int, device: str, backbone: str) -> Iterator[None]:
    """As `memory`, where pictures are drawn outside a run, `batch` at a time."""
    tried = [f"compute.batch={batch // 2}" if batch > 1 else "", precision(compute)]
    if beside(backbone):
        tried += ["compute.decode=sliced" if compute.decode == "whole" else "", resolution(compute), SCORERS]
    told = ", ".join(filter(None, tried))
    cure = f"try --set with {told}" if told else "this machine has too little for it"
    with allocating(lambda: BenchError(f"out of memory on {device}; {cure}")):
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
    """The error, with settings in the order in which to try them: those under which this run goes on, then those that
    make it another run."""
    compute, method = spec.compute, find("method", spec.method)
    another = [precision(compute), *smaller_pictures(spec)]
    if phase == "training":
        same = ["" if compute.gradient_checkpointing else "compute.gradient_checkpointing=true", fewer_drawn(spec)]
        same += [*(decoding(spec) if method.needs.rewards else ()), *offloading(spec), *scorers(spec)]
        another = [*smaller_updates(spec), *another]
    elif phase == "evaluation":
        same = [lower("evaluation.batch", spec.evaluation.batch), *decoding(spec), *offloading(spec), *scorers(spec)]
        same.insert(1, fewer_drawn(spec))
    else:
        same = [*offloading(spec), *scorers(spec, ("device", "url"))]
    return BenchError(f"out of memory on {spec.device} in {phase}; {cures(same, another)}")


def cures(same: list[str], another: list[str]) -> str:
    """Both lists in words."""
    to_go_on, to_change = (", ".join(filter(None, listed)) for listed in (same, another))
    if to_go_on and to_change:
        return f"go on with --set {to_go_on}; or, as another run, {to_change}"
    if to_go_on:
        return f"go on with --set {to_go_on}"
    return f"as another run, --set {to_change}" if to_change else "this machine has too little for it"


def lower(name: str, now: object, most: int = 0) -> str:
    """A setting that can be lowered with what it is now, and with `most` (0: not known) where it only counts below."""
    if not isinstance(now, int) or min(now, most or now) <= 1:
        return ""
    return f"a lower {name} (now {now})" + (f" below {most}" if most and now > most else "")


def smaller_updates(spec: "Spec") -> list[str]:
    """The method's own settings, those of a section that is not in use left out."""
    method = find("method", spec.method)
    options = method.Options.model_validate(spec.params)
    used = [name for name in method.lowers_memory if name.partition(".")[0] not in options.idle]
    work = method.work(spec, spec.sampler.build(describe(spec.backbone).shift))
    most = [work.trained_at_once if work else 0, *(0 for _ in used[1:])]
    now = leaves(options.model_dump(), "params.")
    return [lower(f"params.{name}", now.get(f"params.{name}"), bound) for name, bound in zip(used, most)]


def fewer_drawn(spec: "Spec") -> str:
    now = spec.compute.batch
    return "" if now == 1 else f"a lower compute.batch (now {now or 'all at once'})"


def precision(compute: Compute) -> str:
    return "compute.precision=bfloat16" if compute.precision == "float32" else ""


def beside(backbone: str) -> bool:
    """Whether text encoders, a VAE and scorers of their size lie beside the transformer: they do where somebody plans
    GPU-hours."""
    return describe(backbone).size is not None


def decoding(spec: "Spec") -> list[str]:
    return ["compute.decode=sliced"] if spec.compute.decode == "whole" and beside(spec.backbone) else []


def offloading(spec: "Spec") -> list[str]:
    """Text encoders in host memory: nothing where they are there already, or where all is on the CPU."""
    useful = spec.device != "cpu" and not spec.compute.offload_text_encoders and beside(spec.backbone)
    return ["compute.offload_text_encoders=true"] if useful else []


def smaller_pictures(spec: "Spec") -> list[str]:
    """A lower resolution, where the backbone has a choice of it."""
    return [resolution(spec.compute)] if beside(spec.backbone) else []


def resolution(compute: Compute) -> str:
    return f"a lower compute.resolution (now {compute.resolution or 'the size the model was made for'})"


def scorers(spec: "Spec", which: tuple[str, ...] = ("batch", "device", "url")) -> list[str]:
    """Settings of the tasks' scorers that take work off this device: every task can be scored at a url, the others are
    those that its scorer knows."""
    if not beside(spec.backbone):
        return []
    cures = []
    for task in spec.tasks:
        given, known = spec.scorers.get(task, {}), find("task", task).sources
        if "url" in given:
            continue
        if "batch" in which and "batch" in known:
            cures.append(f"a lower scorers.{task}.batch")
        if "device" in known and spec.device != "cpu" and given.get("device") != "cpu":
            cures.append(f"scorers.{task}.device=cpu")
        cures.append(f"scorers.{task}.url to score elsewhere")
    return cures
