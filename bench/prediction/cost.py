"""Predicted cost of a run: passes, floating-point operations and hours, computed from shapes without loading a model.

Budgets are stated in NFE (bench/backbones/meter.py), where a backward pass counts 2 by convention. This module counts
floating-point operations instead: the backward pass to the adapter, what gradient checkpointing recomputes, forward
passes without gradients (rollouts, teachers, the base, held-out evaluation), and the decoding of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.analysis.diversity import IMAGES, PROMPTS
from bench.api.method import Work
from bench.backbones.adapters import Shape, student_shape
from bench.backbones.full_weights import Full
from bench.backbones.meter import Passes
from bench.backbones.size import Size
from bench.config.compute import Compute
from bench.config.descriptor import Descriptor
from bench.config.resolve import TRAINED_HERE, describe, teacher_spec
from bench.config.spec import CHOICE, Spec
from bench.errors import BenchError, one_line
from bench.registry import find
from bench.sampler.rollout import Sampler
from bench.scoring.loading import load_task

GPU = "H100 SXM"
PEAK = {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12}
"""Peak floating-point operations per second of dense matrix products on that GPU, from its data sheet. By default,
PyTorch multiplies float32 matrices in float32 and computes convolutions (the VAE) in TF32."""
MEASURED = PROMPTS * IMAGES
"""Paths per task of an evaluation's measures: three further images of some prompts, and one followed by the base."""
HALF = (0.20, 0.30)
UTILISATION = {"float32": (0.50, 0.65), "bfloat16": HALF, "float16": HALF}
"""Lowest and highest share of the peak that eager PyTorch is expected to reach on SD3.5-Medium.

This is an estimate that no GPU has confirmed yet; `bench perf` measures it. It assumes that every operation takes as
long as its arithmetic at 70% of the peak (attention 50%) or its memory traffic at 85% of 3.35 TB/s, whichever is
longer. At half precision and 512 pixels this gives 22 to 23% for training passes and 30% for passes without gradients;
at float32, whose peak is much lower, 58 and 61%.
"""
UNCOUNTED = (
    "not in these hours: scoring (detector, text recognition, preference models and servers, whose speed depends on "
    "where they run), encoding prompts, optimiser steps, loading, and waiting for other processes"
)


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of the transformer and of the VAE's decoder."""

    model: float = 0.0
    """Operations of the transformer."""
    decoder: float = 0.0
    """Operations of the VAE's decoder, which computes in TF32 at any precision."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.model + other.model, self.decoder + other.decoder)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.model * times, self.decoder * times)

    def seconds(self, compute: Compute, utilisation: float) -> float:
        """Seconds on one GPU at a utilisation between 0 and 1."""
        model = self.model / PEAK[compute.precision]
        decoder = self.decoder / PEAK["tf32"]
        return (model + decoder) / utilisation


@dataclass(frozen=True)
class GpuTime:
    """Time on one GPU, a range in seconds; as text "13 to 20 hours", or minutes."""

    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: "GpuTime") -> "GpuTime":
        return GpuTime(self.low + other.low, self.high + other.high)

    def __mul__(self, times: float) -> "GpuTime":
        return GpuTime(self.low * times, self.high * times)

    def __str__(self) -> str:
        low, high, unit = self.low / 60, self.high / 60, "minutes"
        if high >= 120:
            low, high, unit = low / 60, high / 60, "hours"
        if high < 10:
            return f"{low:,.2g} to {high:,.2g} {unit}"
        return f"{low:,.0f} to {high:,.0f} {unit}"


def gpu_time(cost: Cost, compute: Compute) -> GpuTime:
    """Time on one GPU at the assumed range of utilisation."""
    worst, best = UTILISATION[compute.precision]
    return GpuTime(cost.seconds(compute, best), cost.seconds(compute, worst))


def hours(cost: Cost, compute: Compute) -> str:
    """Time on one GPU at the assumed range of utilisation, as text: "13 to 20 hours", or minutes."""
    return str(gpu_time(cost, compute))


def of_passes(passes: Passes, size: Size, student: Shape | Full, compute: Compute) -> float:
    """Floating-point operations of passes through the network, of which some train a student."""
    forward = size.sampling(1, compute).forward
    if not passes.trained:
        return passes.forward * forward
    one = size.training(1, student, compute)
    return passes.forward * forward + passes.trained * (one.forward + one.backward)


def of_pictures(count: int, size: Size, compute: Compute) -> float:
    """Floating-point operations of decoding `count` images; 0 for a model without a decoder."""
    one = size.decoding(1, compute)
    return count * one.forward if one else 0.0


def of_update(work: Work, size: Size, spec: Spec) -> Cost:
    """Cost of one update: its passes, and the images that it decodes."""
    passes = of_passes(work.passes, size, student_shape(spec), spec.compute)
    return Cost(passes, of_pictures(work.pictures, size, spec.compute))


def updates(spec: Spec, per_update: int) -> int | None:
    """Number of updates until the budget is spent, at `per_update` NFE each; None for a budget in seconds."""
    if spec.budget.updates:
        return spec.budget.updates
    if spec.budget.nfe and per_update:
        return -(-spec.budget.nfe // per_update)
    return None


def run_nfe(spec: Spec) -> int | None:
    """Training NFE of a whole run, which ends on a whole update; 0 if its method does not train.

    None for a budget in seconds, which says nothing of NFE.
    """
    method = find("method", spec.method)
    if not method.trains:
        return 0
    per_update = method.predict(spec, describe(spec.backbone).sampler(spec))
    count = updates(spec, per_update)
    return None if count is None else per_update * count


def held_out(spec: Spec, world: str, split: str | None = None) -> dict[str, int | str]:
    """Task -> number of images per held-out evaluation, or the reason why it is not known.

    `split`: of the prompts, if not the one that the run is evaluated on.
    """
    found: dict[str, int | str] = {}
    for task in spec.tasks:
        try:
            loaded = load_task(task, world, spec.scorers.get(task))
            found[task] = len(loaded.prompts(split or spec.evaluation.split))
        except BenchError as error:
            found[task] = one_line(error)
    return found


def held_out_evaluations(spec: Spec, count: int | None) -> int:
    """Number of held-out evaluations of the student during `count` updates, and of its further students at the end.

    Points of the budget that are reached in the same update share an evaluation.
    """
    further = len(find("method", spec.method).points(spec))
    points = {p for p in spec.evaluation.points if 0 < p < 1} | {1.0}
    if not find("method", spec.method).trains:
        return 1 + further
    if not count:
        return len(points) + further
    reached_in = {-(-p * count // 1) for p in points}
    return len(reached_in) + further


def of_evaluation(
    spec: Spec, size: Size, sampler: Sampler, pictures: dict[str, int], guidance: dict[str, float]
) -> Cost:
    """Cost of drawing and decoding one model's held-out images; `pictures` and `guidance` are by task.

    Includes the images that measure diversity, and the base's passes that measure the distance from it.
    """
    steps = spec.evaluation.steps
    passes = sum((n + MEASURED) * steps * sampler.passes(guidance[task]) for task, n in pictures.items())
    decoded = sum(pictures.values()) + (MEASURED - PROMPTS) * len(pictures)
    return Cost(
        of_passes(Passes(forward=passes), size, student_shape(spec), spec.compute),
        of_pictures(decoded, size, spec.compute),
    )


def of_grid(spec: Spec, world: str, size: Size, sampler: Sampler, pictures: dict[str, int]) -> Cost:
    """Cost of one model's final scores at its best guidance scale (evaluation.guidance_grid); nothing without a grid.

    Every scale on the prompts that the choice is made on, and on the run's own the largest, which no other exceeds.
    """
    grid = spec.evaluation.guidance_grid
    if not grid:
        return Cost()
    chosen_on = {
        task: n for task, n in held_out(spec, world, CHOICE).items() if task in pictures and isinstance(n, int)
    }
    total = of_evaluation(spec, size, sampler, pictures, dict.fromkeys(pictures, grid[-1]))
    for scale in grid:
        total += of_evaluation(spec, size, sampler, chosen_on, dict.fromkeys(chosen_on, scale))
    return total


def lines(spec: Spec, descriptor: Descriptor, size: Size, sampler: Sampler) -> Iterator[str]:
    """The predicted cost of a run as lines of text."""
    method = find("method", spec.method)
    work, per_update = method.work(spec, sampler), method.predict(spec, sampler)
    count = updates(spec, per_update) if method.trains else 0
    yield from training_lines(spec, size, work, per_update, count)
    yield from evaluation_lines(spec, descriptor, size, sampler, count)
    yield from assumptions(spec.compute)


def assumptions(compute: Compute) -> Iterator[str]:
    """What predicted hours assume and leave out, as lines of text."""
    low, high = UTILISATION[compute.precision]
    peak = PEAK[compute.precision] / 1e12
    yield (
        f"hours are for one {GPU} that reaches {low:.0%} to {high:.0%} of its {peak:,.0f} TFLOP/s, which is an "
        "estimate; bench perf measures it"
    )
    yield UNCOUNTED


def training_lines(
    spec: Spec,
    size: Size,
    work: Work | None,
    per_update: int,
    count: int | None,
) -> Iterator[str]:
    """Lines on the cost of a pass, of training, and of training missing teachers."""
    if not find("method", spec.method).trains:
        yield f"training: none; {spec.method} computes the student from its teachers and evaluates it"
    else:
        one = size.training(1, student_shape(spec), spec.compute)
        trained = "all weights" if spec.full_finetuning else "the adapter"
        again = " (including gradient checkpointing's recomputation)" if spec.compute.gradient_checkpointing else ""
        yield (
            f"predicted: a network of {size.parameters:,} parameters, {one.forward / 1e12:.2f} TFLOP per forward pass "
            f"of one latent (1 NFE); a backward pass to {trained} costs "
            f"{one.backward / one.forward:.2f} forward passes{again}"
        )
        yield training_hours(spec, size, work, per_update, count)
    for task, source in spec.teachers.items():
        if source == TRAINED_HERE[1]:
            yield f"the teacher of {task} is trained first if it does not exist yet: {teacher_hours(spec, size, task)}"


def training_hours(
    spec: Spec,
    size: Size,
    work: Work | None,
    per_update: int,
    count: int | None,
) -> str:
    """Time of training as a line of text, or the reason why it is not known.

    `work` is None if the method does not say which passes it makes, `count` is None for a budget in seconds.
    """
    if count is None:
        return f"training: ends after {spec.budget.seconds:,.0f} seconds of training and scoring, as set by the budget"
    if work is None:
        # The two extremes: all passes have gradients, or none has.
        units = spec.budget.nfe or per_update * count
        either = Passes(trained=units // Passes(trained=1).nfe), Passes(forward=units)
        flops = sorted(of_passes(passes, size, student_shape(spec), spec.compute) for passes in either)
        low, high = (hours(Cost(flop), spec.compute) for flop in flops)
        return f"training: between {low} and {high}; the method does not say how many of its passes have gradients"
    # A budget in NFE is overshot by less than one update.
    total = of_update(work, size, spec) * count
    decoded = f", and decodes {work.pictures:,} images" if work.pictures else ""
    decoding = f" and {total.decoder:.1e} FLOP of decoding" if total.decoder else ""
    return (
        f"training: an update makes {work.passes.forward:,} passes without gradients and {work.passes.trained:,} with "
        f"gradients{decoded}; {count:,} updates take {total.model:.2e} FLOP{decoding}: {hours(total, spec.compute)}"
    )


def training_time(spec: Spec, size: Size) -> GpuTime | None:
    """Time of training one run; None if its method does not say which passes it makes, or for a budget in seconds."""
    method = find("method", spec.method)
    if not method.trains:
        return GpuTime()
    sampler = describe(spec.backbone).sampler(spec)
    work = method.work(spec, sampler)
    count = updates(spec, method.predict(spec, sampler))
    if work is None or count is None:
        return None
    return gpu_time(of_update(work, size, spec) * count, spec.compute)


def teacher_hours(spec: Spec, size: Size, task: str) -> str:
    """Time of training the teacher of one task, as text."""
    time = training_time(teacher_spec(spec, task), size)
    return "hours not known" if time is None else str(time)


def evaluation_time(spec: Spec, size: Size) -> GpuTime | None:
    """Time of a run's held-out evaluations of its student, on the tasks whose number of images is known; None if none.

    Evaluating the base and the teachers, once per results folder, is not included.
    """
    descriptor = describe(spec.backbone)
    if descriptor.size:
        size = descriptor.size(spec.evaluation_compute) or size
    found = held_out(spec, descriptor.world)
    pictures = {task: n for task, n in found.items() if isinstance(n, int)}
    if not pictures:
        return None
    method, sampler = find("method", spec.method), descriptor.sampler(spec)
    count = updates(spec, method.predict(spec, sampler)) if method.trains else 0
    each = of_evaluation(spec, size, sampler, pictures, dict.fromkeys(pictures, spec.evaluation.scale))
    final = of_grid(spec, descriptor.world, size, sampler, pictures)
    return gpu_time(each * held_out_evaluations(spec, count) + final, spec.compute)


def unknown_images(found: dict[str, int | str]) -> Iterator[str]:
    """A line for every task whose number of images is not known, with the reason; `found` is from `held_out`."""
    for task, why in found.items():
        if isinstance(why, str):
            yield f"held-out evaluation of {task}: not included, because its number of images is not known ({why})"


def evaluation_lines(
    spec: Spec, descriptor: Descriptor, size: Size, sampler: Sampler, count: int | None
) -> Iterator[str]:
    """Lines on the held-out evaluation of the student, and of the base and the teachers it is compared with."""
    found = held_out(spec, descriptor.world)
    pictures = {task: n for task, n in found.items() if isinstance(n, int)}
    times = held_out_evaluations(spec, count)
    listed = ", ".join(f"{task} {n:,}" for task, n in pictures.items())
    evaluation = spec.evaluation
    if pictures and descriptor.size:
        size = descriptor.size(spec.evaluation_compute) or size
        student = of_evaluation(spec, size, sampler, pictures, dict.fromkeys(pictures, evaluation.scale))
        guided = ", two passes each for guidance" if sampler.passes(evaluation.scale) == 2 else ""
        time = hours(student * times, spec.compute)
        drawn = f"{times} x ({listed}) images of {evaluation.steps} steps{guided}"
        yield f"held-out evaluation: {drawn}, and measures: {time}"
        if evaluation.guidance_grid:
            final = of_grid(spec, descriptor.world, size, sampler, pictures)
            # Scores along training are compared with base and teachers at the student's scale.
            usual = of_evaluation(spec, size, sampler, pictures, dict.fromkeys(pictures, evaluation.scale))
            references = (usual + final) * (1 + len(spec.teachers))
            listed = ", ".join(f"{scale:g}" for scale in evaluation.guidance_grid)
            yield f"final scores at the best guidance scale of {listed}: {hours(final, spec.compute)}"
        else:
            references = Cost()
            for model in ("base", *(f"teacher {task}" for task in spec.teachers)):
                scales = {task: descriptor.usual_guidance(model, task, spec) for task in pictures}
                references += of_evaluation(spec, size, sampler, pictures, scales)
        whom = ", ".join(["the base", *(f"teacher {task}" for task in spec.teachers)])
        yield f"evaluation of {whom}, once per results folder: {hours(references, spec.compute)}"
    yield from unknown_images(found)
    if spec.probes.interference:
        yield "probes.interference: not included"
