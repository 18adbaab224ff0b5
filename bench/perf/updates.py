"""Throughput of rollouts and of on-policy distillation's updates, against the straightforward loop."""

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

STEPS, TRAINED = 10, 9
TRAJECTORIES = 24
RANK, ALPHA = 32, 64.0
TASK = "measured"


class TimedTask(Task):
    """Prompts without a scorer."""

    name, version, headline = TASK, "1", "reward"

    def __init__(self, texts: list[str]):
        super().__init__("none")
        self.texts = texts

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(text) for text in self.texts]

    def score(self, images_BCHW: torch.Tensor, prompts: list[Prompt]) -> Scores:
        raise NotImplementedError("nothing is scored here")


@dataclass(frozen=True)
class UpdateVariant:
    """One way to make the same update."""

    label: str
    options: dict | None
    """Settings of opd_analytic; None: the straightforward loop."""
    batch: int = PUBLISHED_BATCH
    """Of the straightforward loop."""
    changes: tuple[tuple[str, object], ...] = ()
    """Settings under `compute` that differ."""


BASELINE = "straightforward, batch 3"
SAME_BATCH = "straightforward, whole batch"


def variants(trajectories: int) -> tuple[UpdateVariant, ...]:
    """The baseline, the same at the batch of the others, and opd_analytic's ways."""
    fused = {"execution": "fused", "trajectories": trajectories}
    return (
        UpdateVariant(BASELINE, None),
        UpdateVariant(SAME_BATCH, None, trajectories),
        UpdateVariant("plain", {"execution": "plain", "trajectories": trajectories, "chunk": trajectories}),
        UpdateVariant("fused", fused),
        UpdateVariant("fused, checkpointed", fused, changes=(("gradient_checkpointing", True),)),
        UpdateVariant("fused, compiled", fused, changes=(("compile", True),)),
    )


def laboratory(backbone: FlowBackbone, texts: list[str], guidance: float) -> Lab:
    """A student and a teacher of the published shape on a backbone."""
    backbone.adapters.add(STUDENT, Shape(RANK, ALPHA), trainable=True)
    backbone.adapters.add("teacher", Shape(RANK, ALPHA), seed=1)
    sampler = Sampler(make_schedule(STEPS), KERNELS["ode"])
    return Lab(backbone, {TASK: TimedTask(texts)}, {TASK: "teacher"}, {TASK: guidance}, sampler, guidance, seed=0)


def update(lab: Lab, variant: UpdateVariant) -> Callable[[], None]:
    """The work of one update's gradient."""
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
) -> list[dict]:
    """One row a variant: pictures and NFE per second, memory; 'error' where it does not fit.

    Every variant gets a backbone of its own. On a GPU they are measured one after the other, so that peaks of memory
    are their own too; on a CPU, whose speed depends on its other guests, in turns.
    """
    groups = [(way,) for way in ways] if torch.cuda.is_available() else [ways]
    rows = []
    for group in groups:
        measured: list[dict]
        try:
            labs = [laboratory(make(compute.model_copy(update=dict(way.changes))), texts, guidance) for way in group]
            works = [update(lab, way) for lab, way in zip(labs, group)]
            counts = [count(lab, work) for lab, work in zip(labs, works)]
            timings = measure_in_turns(works, labs[0].backbone.device, warmup=1)
            measured = [
                rates(timing, passes, lab.backbone.compute) for timing, passes, lab in zip(timings, counts, labs)
            ]
        except torch.OutOfMemoryError:
            measured = [{"error": "out of memory"} for _ in group]
        rows += [{"update": w.label, "trajectories": TRAJECTORIES} | row for w, row in zip(group, measured)]
        labs, works = [], []
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def count(lab: Lab, work: Callable[[], None]) -> Passes:
    """Passes of one execution."""
    lab.backbone.meter.passes = Passes()
    work()
    return lab.backbone.meter.passes


def rates(timing: Timing, passes: Passes, compute: Compute) -> dict:
    """A row's numbers; `evaluations` are NFE (bench/backbones/meter.py)."""
    return timing.record() | {
        "evaluations": passes.nfe,
        "passes": {"forward": passes.forward, "trained": passes.trained},
        "gradient_checkpointing": compute.gradient_checkpointing,
        "images_per_s": TRAJECTORIES / timing.seconds,
        "evaluations_per_s": passes.nfe / timing.seconds,
    }


def rollout_row(lab: Lab) -> dict:
    """Sampling without gradients."""
    conditioning = lab.encode(lab.prompts(TASK, TRAJECTORIES))
    noise = lab.backbone.noise(TRAJECTORIES, lab.generator("noise", TASK))
    field = lab.velocity(conditioning, STUDENT)

    def work() -> None:
        rollout(field, noise, lab.sampler, lab.generator("kernel", TASK))

    passes = count(lab, work)
    return {"update": "rollout alone", "trajectories": TRAJECTORIES} | rates(
        measure(work, lab.backbone.device, warmup=1), passes, lab.backbone.compute
    )


@contextmanager
def model_seconds(backbone: FlowBackbone) -> Iterator[list[float]]:
    """Collects how long the model took: encoding, forward, backward (on a CPU, where calls wait for their work)."""
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
