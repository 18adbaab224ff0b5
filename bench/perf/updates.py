"""Throughput of rollouts and of on-policy distillation updates, relative to the straightforward loop."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from unittest.mock import patch

import torch

from bench.api.lab import STUDENT, Lab
from bench.api.method import Method
from bench.api.task import Prompt, Scores, Task
from bench.backbones.adapters import Shape
from bench.backbones.flow import FlowBackbone
from bench.backbones.meter import Passes
from bench.config.compute import Compute
from bench.perf.straightforward import PUBLISHED_BATCH, straightforward_update
from bench.perf.timing import Timing, measure, measure_in_turns
from bench.registry import find
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.schedule import make_schedule
from bench.sampler.transitions import KERNELS

# The published settings of DiffusionOPD: sampling steps, trained steps, trajectories per task, and the adapter's shape.
STEPS, TRAINED = 10, 9
TRAJECTORIES = 24
RANK, ALPHA = 32, 64.0
TASK = "measured"


class TimedTask(Task):
    """A task with prompts but without a scorer, for updates that need no reward."""

    name, version, headline = TASK, "1", "reward"

    def __init__(self, texts: list[str]):
        super().__init__("none")
        self.texts = texts

    def prompts(self, split: str) -> list[Prompt]:
        """The same prompts for every split."""
        return [Prompt(text) for text in self.texts]

    def score(self, images_BCHW: torch.Tensor, prompts: list[Prompt]) -> Scores:
        """Raises NotImplementedError: the timed updates score nothing."""
        raise NotImplementedError("the timed updates score nothing")


@dataclass(frozen=True)
class UpdateVariant:
    """An implementation, with settings, of the update that all variants compute."""

    label: str
    options: dict | None
    """Options of opd_analytic; None for the straightforward loop."""
    batch: int = PUBLISHED_BATCH
    """Batch size of the straightforward loop."""
    changes: tuple[tuple[str, object], ...] = ()
    """Settings under `compute` that differ from the defaults."""


ROLLOUT = "rollout alone"
BASELINE = "straightforward, batch 3"
SAME_BATCH = "straightforward, whole batch"
CHUNK = 12
"""Trajectories at once that leave room on a GPU of 80 GB without gradient checkpointing."""


def variants(trajectories: int, gpu: bool = False) -> tuple[UpdateVariant, ...]:
    """The baseline and the execution modes of opd_analytic, those first that say most; with all trajectories at once.

    On a GPU also in chunks, checkpointed and compiled, which is only worthwhile there. Whole batches come last, because
    they may not fit into memory.
    """
    fused = {"execution": "fused", "trajectories": trajectories}
    plain = {"execution": "plain", "trajectories": trajectories}
    chunked = fused | {"chunk": CHUNK}
    on_gpu = (
        UpdateVariant("fused, chunk 12", chunked),
        UpdateVariant("plain, chunk 12", plain | {"chunk": CHUNK}),
        UpdateVariant("fused, checkpointed", fused, changes=(("gradient_checkpointing", True),)),
        UpdateVariant("fused, chunk 12, compiled", chunked, changes=(("compile", True),)),
    )
    return (
        UpdateVariant(BASELINE, None),
        *(on_gpu if gpu else ()),
        UpdateVariant("fused", fused),
        UpdateVariant("plain", plain | {"chunk": trajectories}),
        UpdateVariant(SAME_BATCH, None, trajectories),
    )


def laboratory(backbone: FlowBackbone, texts: list[str], guidance: float) -> Lab:
    """A Lab with a student and a teacher, both adapters of the published shape, and a deterministic sampler."""
    backbone.adapters.add(STUDENT, Shape(RANK, ALPHA), trainable=True)
    backbone.adapters.add("teacher", Shape(RANK, ALPHA), seed=1)
    sampler = Sampler(make_schedule(STEPS), KERNELS["ode"])
    return Lab(backbone, {TASK: TimedTask(texts)}, {TASK: "teacher"}, {TASK: guidance}, sampler, guidance, seed=0)


def update(lab: Lab, variant: UpdateVariant) -> Callable[[], None]:
    """A function that accumulates the gradient of one update on the student's parameters."""
    if variant.options is None:
        return lambda: straightforward_update(lab, TASK, TRAJECTORIES, TRAINED, variant.batch)
    method_class = find("method", "opd_analytic")
    method: Method = method_class(method_class.Options(**variant.options))

    def work() -> None:
        with torch.no_grad():
            experience = method.collect(lab, TASK)
        for piece in method.losses(lab, TASK, experience):
            piece.backward()

    return work


def table(
    make: Callable[[Compute], FlowBackbone],
    compute: Compute,
    texts: list[str],
    guidance: float,
    ways: tuple[UpdateVariant, ...],
) -> Iterator[dict]:
    """One row per variant: images and NFE per second, and peak memory; or 'error' if it does not fit into memory.

    Each variant has a separate backbone, built by `make`. On a GPU the variants are measured one after another, so that
    each one's peak memory can be measured; on a CPU, whose speed varies with its other load, they take turns.
    """
    on_gpu = torch.cuda.is_available()
    groups = [(way,) for way in ways] if on_gpu else [ways] if ways else []
    for group in groups:
        measured: list[dict]
        try:
            computes = [compute.model_copy(update=dict(way.changes)) for way in group]
            labs = [laboratory(make(each), texts, guidance) for each in computes]
            works = [update(lab, way) for lab, way in zip(labs, group)]
            counts = [count(lab, work) for lab, work in zip(labs, works)]
            timings = measure_in_turns(works, labs[0].backbone.device, warmup=1)
            used = [lab.backbone.compute for lab in labs]
            measured = [rates(timing, passes, each) for timing, passes, each in zip(timings, counts, used)]
        except torch.OutOfMemoryError:
            measured = [{"error": "out of memory"} for _ in group]
        # Release the models before the next group is built, or both would be in memory. A name bound to one of them
        # outside a comprehension would keep it alive, and so do cycles of references until they are collected.
        labs, works = [], []
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
        for way, row in zip(group, measured):
            yield {"update": way.label, "trajectories": TRAJECTORIES} | row


def count(lab: Lab, work: Callable[[], None]) -> Passes:
    """Execute `work` once and return its passes through the model."""
    lab.backbone.meter.passes = Passes()
    work()
    return lab.backbone.meter.passes


def rates(timing: Timing, passes: Passes, compute: Compute) -> dict:
    """The measured part of a row. In the keys, `evaluations` means NFE (bench/backbones/meter.py)."""
    return timing.record() | {
        "evaluations": passes.nfe,
        "passes": {"forward": passes.forward, "trained": passes.trained},
        "gradient_checkpointing": compute.gradient_checkpointing,
        "images_per_s": TRAJECTORIES / timing.seconds,
        "evaluations_per_s": passes.nfe / timing.seconds,
    }


def rollout_row(lab: Lab) -> dict:
    """The row of a rollout without gradients."""
    conditioning = lab.encode(lab.prompts(TASK, TRAJECTORIES))
    noise = lab.backbone.noise(TRAJECTORIES, lab.generator("noise", TASK))
    field = lab.velocity(conditioning, STUDENT)

    def work() -> None:
        rollout(field, noise, lab.sampler, lab.generator("kernel", TASK))

    passes = count(lab, work)
    timing = measure(work, lab.backbone.device, warmup=1)
    row = {"update": ROLLOUT, "trajectories": TRAJECTORIES}
    return row | rates(timing, passes, lab.backbone.compute)


@contextmanager
def model_seconds(backbone: FlowBackbone) -> Iterator[list[float]]:
    """Within the context, collect the seconds of every encoding, forward and backward pass of a model on the CPU.

    On a GPU the calls return before their kernels have finished, so the times would be meaningless.
    """
    spent: list[float] = []

    def timed(call: Callable) -> Callable:
        def run(*args, **kwargs):
            started = perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent.append(perf_counter() - started)

        return run

    backward, encode = torch.Tensor.backward, backbone._encode
    with (
        patch.object(backbone, "_forward", timed(backbone._forward)),
        patch.object(backbone, "_encode", timed(lambda prompts: list(encode(prompts)))),
        patch.object(torch.Tensor, "backward", timed(backward)),
    ):
        yield spent
