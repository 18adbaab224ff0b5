"""What a run will cost, said before it starts: passes, operations, hours, memory. Arithmetic on shapes; loads no model.

Budgets are stated in NFE (bench/backbones/meter.py), where a backward pass counts 2 by convention. Here
operations are counted: what a backward pass to the adapter takes, what gradient checkpointing computes again, what is
drawn for rollouts, teachers, the base and held-out evaluation without gradients, and the decoding of pictures.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.api.method import Work
from bench.backbones.meter import Passes
from bench.backbones.size import Size
from bench.config.compute import Compute
from bench.config.descriptor import Descriptor
from bench.config.resolve import TRAINED_HERE, teacher_spec
from bench.config.spec import LoraSpec, Spec
from bench.errors import BenchError, one_line
from bench.registry import find
from bench.scoring.loading import load_task

GPU = "H100 SXM"
PEAK = {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12, "float16": 989.4e12}
"""Operations a second of dense products on that GPU, by its data sheet. PyTorch multiplies float32 matrices in float32
and convolves (the VAE) in TF32 where nothing else is set."""
HALF = (0.20, 0.30)
UTILISATION = {"float32": (0.50, 0.65), "bfloat16": HALF, "float16": HALF}
"""Share of the peak that eager PyTorch reaches on this model: an estimate, measured on no GPU yet. Every operation was
taken to last as long as its arithmetic at 70% of the peak (attention 50%) or its memory traffic at 85% of 3.35 TB/s,
whichever is longer: at half precision training passes of SD3.5-Medium at 512 pixels come to 22 to 23%, passes without
gradients to 30%; at float32, whose peak is so much lower, to 58 and 61%. `bench perf` measures it."""
UNCOUNTED = (
    "not in these hours: scoring (detector, text recognition, preference models, servers: their speed hangs on where "
    "they run), encoding prompts, the optimiser's steps, loading, waiting for other processes"
)


@dataclass(frozen=True)
class Cost:
    """Operations of the transformer and of the VAE's decoder."""

    model: float = 0.0
    decoder: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.model + other.model, self.decoder + other.decoder)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.model * times, self.decoder * times)

    def seconds(self, compute: Compute, utilisation: float) -> float:
        """On one GPU that is as busy as that."""
        return (self.model / PEAK[compute.precision] + self.decoder / PEAK["tf32"]) / utilisation


def hours(cost: Cost, compute: Compute) -> str:
    """'13 to 20 hours', or minutes, of one GPU at the assumed range of utilisation."""
    low, high = (cost.seconds(compute, busy) / 60 for busy in reversed(UTILISATION[compute.precision]))
    unit = "minutes" if high < 120 else "hours"
    low, high = (low, high) if unit == "minutes" else (low / 60, high / 60)
    return f"{low:,.2g} to {high:,.2g} {unit}" if high < 10 else f"{low:,.0f} to {high:,.0f} {unit}"


def of_passes(passes: Passes, size: Size, lora: LoraSpec, compute: Compute) -> float:
    """Operations of so many passes."""
    forward = size.sampling(1, compute).forward
    if not passes.trained:
        return passes.forward * forward
    one = size.training(1, lora.rank, lora.targets, compute)
    return passes.forward * forward + passes.trained * (one.forward + one.backward)


def of_pictures(count: int, size: Size, compute: Compute) -> float:
    """Operations of decoding so many pictures."""
    one = size.decoding(1, compute)
    return count * one.forward if one else 0.0


def of_update(work: Work, size: Size, spec: Spec) -> Cost:
    return Cost(of_passes(work.passes, size, spec.lora, spec.compute), of_pictures(work.pictures, size, spec.compute))


def updates(spec: Spec, per_update: int) -> int | None:
    """Updates to the end of the budget; None for a budget in seconds."""
    if spec.budget.updates:
        return spec.budget.updates
    if spec.budget.nfe and per_update:
        return -(-spec.budget.nfe // per_update)
    return None


def held_out(spec: Spec, world: str) -> dict[str, int | str]:
    """task -> held-out pictures, or why their number is not known."""
    found: dict[str, int | str] = {}
    for task in spec.tasks:
        try:
            found[task] = len(load_task(task, world, spec.scorers.get(task)).prompts(spec.evaluation.split))
        except BenchError as error:
            found[task] = one_line(error)
    return found


def held_out_evaluations(spec: Spec, count: int | None) -> int:
    """How often the student is evaluated: points of the budget that fall into one update are one."""
    points = {p for p in spec.evaluation.points if 0 < p < 1} | {1.0}
    if not find("method", spec.method).trains:
        return 1
    return len({-(-p * count // 1) for p in points}) if count else len(points)


def branches(guidance: float) -> int:
    """Passes of one guided velocity."""
    return 1 if guidance == 1 else 2


def of_evaluation(spec: Spec, size: Size, pictures: dict[str, int], guidance: dict[str, float]) -> Cost:
    """Drawing and decoding one model's held-out pictures, each task at its guidance."""
    passes = sum(n * spec.evaluation.steps * branches(guidance[task]) for task, n in pictures.items())
    return Cost(
        of_passes(Passes(forward=passes), size, spec.lora, spec.compute),
        of_pictures(sum(pictures.values()), size, spec.compute),
    )


def lines(spec: Spec, descriptor: Descriptor, size: Size, sampler) -> Iterator[str]:
    """Cost in plain English, one fact a line."""
    method = find("method", spec.method)
    work, per_update = method.work(spec, sampler), method.predict(spec, sampler)
    count = updates(spec, per_update) if method.trains else 0
    yield from training_lines(spec, size, work, per_update, count)
    yield from evaluation_lines(spec, descriptor, size, count)
    low, high = UTILISATION[spec.compute.precision]
    yield (
        f"hours are of one {GPU} that reaches {low:.0%} to {high:.0%} of its "
        f"{PEAK[spec.compute.precision] / 1e12:,.0f} TFLOP/s: an estimate, bench perf measures it"
    )
    yield UNCOUNTED


def training_lines(spec: Spec, size: Size, work: Work | None, per_update: int, count: int | None) -> Iterator[str]:
    """What a pass costs, and training."""
    if not find("method", spec.method).trains:
        yield f"training: none; {spec.method} sets the student up from its teachers and is evaluated"
    else:
        one = size.training(1, spec.lora.rank, spec.lora.targets, spec.compute)
        again = " with what gradient checkpointing computes again" if spec.compute.gradient_checkpointing else ""
        yield (
            f"predicted: {one.forward / 1e12:.2f} TFLOP a model evaluation that is a forward pass of one latent; a "
            f"backward pass to the adapter takes {one.backward / one.forward:.2f} forward passes{again}"
        )
        yield training_hours(spec, size, work, per_update, count)
    for task, source in spec.teachers.items():
        if source == TRAINED_HERE[1]:
            yield f"the teacher of {task}, if it is not there yet, is trained first: {teacher_hours(spec, size, task)}"


def training_hours(spec: Spec, size: Size, work: Work | None, per_update: int, count: int | None) -> str:
    """Hours of training, or why they are not known."""
    if count is None:
        return f"training: ends after {spec.budget.seconds:,.0f} seconds of training and scoring, as the budget says"
    if work is None:
        units = spec.budget.nfe or per_update * count
        either = Passes(trained=units // Passes(trained=1).nfe), Passes(forward=units)
        low, high = (
            hours(Cost(flop), spec.compute)
            for flop in sorted(of_passes(p, size, spec.lora, spec.compute) for p in either)
        )
        return f"training: between {low} and {high}; the method does not say how many of its passes have gradients"
    one = of_update(work, size, spec)
    # a budget in NFE is overshot by part of an update at most
    whole = one * count
    decoded = f", and {work.pictures:,} pictures to decode" if work.pictures else ""
    return (
        f"training: an update makes {work.passes.forward:,} passes without gradients and {work.passes.trained:,} with "
        f"them{decoded}; {count:,} updates are {whole.model:.2e} FLOP"
        + (f" and {whole.decoder:.1e} FLOP of decoding" if whole.decoder else "")
        + f": {hours(whole, spec.compute)}"
    )


def teacher_hours(spec: Spec, size: Size, task: str) -> str:
    """Hours of training one teacher."""
    theirs = teacher_spec(spec, task)
    method = find("method", theirs.method)
    sampler = theirs.sampler.build(1.0)
    work = method.work(theirs, sampler)
    count = updates(theirs, method.predict(theirs, sampler))
    if work is None or count is None:
        return "hours not known"
    return hours(of_update(work, size, theirs) * count, theirs.compute)


def evaluation_lines(spec: Spec, descriptor: Descriptor, size: Size, count: int | None) -> Iterator[str]:
    """Held-out evaluation of the student, and of what it is compared with."""
    found = held_out(spec, descriptor.world)
    pictures = {task: n for task, n in found.items() if isinstance(n, int)}
    times = held_out_evaluations(spec, count)
    listed = ", ".join(f"{task} {n:,}" for task, n in pictures.items())
    o = spec.evaluation
    if pictures:
        student = of_evaluation(spec, size, pictures, dict.fromkeys(pictures, o.scale))
        yield (
            f"held-out evaluation: {times} x ({listed}) pictures of {o.steps} steps"
            f"{', two passes each for guidance' if branches(o.scale) == 2 else ''}: "
            f"{hours(student * times, spec.compute)}"
        )
        base = of_evaluation(
            spec, size, pictures, {t: (descriptor.base_guidance or {}).get(t, o.scale) for t in pictures}
        )
        for teacher in spec.teachers:
            scale = spec.teacher_guidance[teacher]
            base += of_evaluation(spec, size, pictures, dict.fromkeys(pictures, scale))
        whom = ", ".join(["the base", *(f"teacher {task}" for task in spec.teachers)])
        yield f"evaluation of {whom}, once a results folder: {hours(base, spec.compute)}"
    for task, why in found.items():
        if task not in pictures:
            yield f"held-out evaluation of {task} comes on top: how many pictures is not known ({why})"
    if spec.probes.interference:
        yield "probes.interference: not predicted"
