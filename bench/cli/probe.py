"""`bench probe`: gradient noise and interference of methods at one frozen student."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.analysis.stats import Estimate
from bench.config.contradictions import leaves
from bench.config.grid import overrides_of, recipes, variants
from bench.config.resolve import resolve
from bench.config.settings import parse_override
from bench.config.spec import Spec
from bench.errors import UsageError
from bench.jobs.placement import Placement
from bench.jobs.runs import carry_out_command
from bench.probes.estimates import nested
from bench.probes.gradient import GradientNoise, gradient_noise
from bench.probes.interference import interference
from bench.registry import find, refuse_repeats
from bench.system.files import json_bytes
from bench.system.outputs import check_output, write_output
from bench.system.places import check_writable
from bench.system.workers import refuse_several
from bench.training.laboratory import laboratory
from bench.training.teacher_sets import check_teachers

HELD_APART = 10_000
"""First state (seed of prompts and noise) of the reference gradient. Estimates use states from 0, so that the two share
no samples, which would bias the cosine upwards."""

IDLE = ("budget", "optimizer", "ema", "evaluation", "probes", "checkpoint_every")
"""Sections of settings that have no effect on a frozen student."""

Member = tuple[str, tuple[str, ...], Spec]
"""(label, point of the grid that all methods share, spec) of one probe."""


@dataclass(frozen=True)
class Probing:
    """Arguments of the command, as plain data that can be sent to a job."""

    methods: list[str]
    tasks: list[str]
    student: str
    """'base', or an adapter folder."""
    backbone: str
    axes: list[str]
    overrides: list[str]
    states: int
    draws: int
    by_sigma: bool
    output: str | None

    def specs(self) -> list[Member]:
        """The probes to carry out, from `probe_specs`."""
        return probe_specs(self.methods, self.tasks, self.backbone, self.axes, self.overrides, self.student)


def carry_out_probe(asked: Probing, root: Path, placement: Placement) -> None:
    """Measure in this process or as a job, and print the tables."""
    if placement.executor == "inline":
        probe_methods(asked, root)
        return
    _, _, first_spec = asked.specs()[0]
    carry_out_command("probe", asdict(asked), measure, root, placement, first_spec.device)


def measure(work: dict[str, Any], root: Path) -> None:
    """Carry out the probe in a job; `work` holds the fields of a Probing."""
    probe_methods(Probing(**work), root)


@dataclass(frozen=True)
class Probe:
    """Measurements of one method at one point of the grid."""

    label: str
    point: tuple[str, ...]
    """Values on the axes that all methods share; methods are compared at the same point."""
    spec: Spec
    noise: GradientNoise
    cosine: float
    """Cosine of the mean gradient to the reference, the first method's mean at this point over separate states."""
    slope: Estimate
    """Mean gradient projected on the reference, relative to the first method's projection: 1 if the means agree."""
    by_sigma: dict[float, GradientNoise]
    interference: dict[str, dict[str, float]]


def probe_methods(asked: Probing, root: Path) -> None:
    """Measure all probes, print the tables, and write JSON if an output file is given.

    Raises UsageError before any model is loaded if a method or setting cannot be probed.
    """
    refuse_several("probe")
    specs, states = asked.specs(), asked.states
    check_teachers([spec for _, _, spec in specs])
    output = Path(asked.output) if asked.output else None
    check_output(output)
    check_writable(root / "cache")
    probes: list[Probe] = []
    # By point of the grid: the reference gradient and the first method's measurement.
    firsts: dict[tuple[str, ...], tuple[GradientNoise, GradientNoise]] = {}
    for label, point, spec in specs:
        lab, method = laboratory(spec, asked.student, root)
        if point not in firsts:
            apart = range(HELD_APART, HELD_APART + 2 * states)
            reference = gradient_noise(nested(method, lab, spec.tasks, apart, 1))
        else:
            reference, _ = firsts[point]
        noise = gradient_noise(nested(method, lab, spec.tasks, range(states), asked.draws), reference.mean)
        _, first = firsts.setdefault(point, (reference, noise))
        split = {}
        levels = lab.sampler.schedule.sigmas[:-1] if asked.by_sigma else []
        for sigma in levels:
            estimates = nested(method, replace(lab, sigma=sigma), spec.tasks, range(states), asked.draws)
            split[sigma] = gradient_noise(estimates, reference.mean)
        probes.append(
            Probe(
                label,
                point,
                spec,
                noise,
                cosine=noise.cosine(reference.mean),
                slope=noise.slope(first),
                by_sigma=trained(split),
                interference=interference(method, lab, spec.tasks, max(2, states // 4)),
            )
        )
    print_probes(probes, asked.methods[0], asked.student)
    if output:
        write_output(output, json_bytes([as_json(p, asked.student) for p in probes]))


def probe_specs(
    methods: list[str],
    tasks: list[str],
    backbone: str,
    axes: list[str],
    overrides: list[str],
    student: str = "base",
) -> list[Member]:
    """(label, point of the shared grid, spec) of every probe.

    All methods use the first method's sampler and adapter shape instead of those of their recipes, because estimates
    are comparable only at the same student and sampler. Raises UsageError for a method that does not train and for a
    setting without effect.
    """
    if not methods:
        raise UsageError("the method list is empty; name at least one method")
    for method in methods:
        if not find("method", method).trains:
            raise UsageError(f"method {method!r} does not train, so it has no gradient to probe: leave it out")
    refuse_repeats("method", methods)
    own = {method: overrides_of(method, methods, overrides) for method in methods}
    found = []
    for v in variants(axes, recipes(methods, tasks, backbone), overrides):
        settings = [*own[v.method], *v.overrides]
        _refuse_idle(settings, student)
        first = resolve(methods[0], tasks, 0, backbone, overrides=[*own[methods[0]], *v.common])
        parts = ("sampler",) if first.full_finetuning else ("sampler", "lora")
        shared = [f"{part}={json.dumps(getattr(first, part).model_dump())}" for part in parts]
        shared += ["full_finetuning=true"] if first.full_finetuning else []
        spec = resolve(v.method, tasks, 0, backbone, overrides=[*shared, *settings])
        if find("method", spec.method).points(spec):
            raise UsageError(f"a probe measures one student, but {v.label!r} trains a family of them: leave it out")
        found.append((v.label, v.common, spec))
    return found


def _refuse_idle(overrides: list[str], student: str) -> None:
    """Raise UsageError for a setting that has no effect on a frozen student, such as a learning rate."""
    keys = [key for text in overrides for key in leaves(parse_override(text))]
    for key in keys:
        section = key.partition(".")[0]
        if key == "lora.start":
            raise UsageError("lora.start has no effect in a probe: name the adapter to probe with --student")
        if section in ("lora", "full_finetuning") and student != "base":
            raise UsageError(
                f"{key} has no effect in a probe of a trained student, which has its own shape: leave it out, or probe "
                f"--student base instead of {student}"
            )
        if section in IDLE:
            raise UsageError(f"{key} has no effect in a probe, which trains nothing: leave it out")


def trained(split: dict[float, GradientNoise]) -> dict[float, GradientNoise]:
    """`split` (sigma -> gradient noise) without the noise levels at which the method never trains."""
    return {sigma: noise for sigma, noise in split.items() if noise.gram.any()}


def as_json(probe: Probe, student: str) -> dict:
    """A probe as plain data, without the gradient itself."""
    by_sigma = [{"sigma": sigma} | _numbers(noise) for sigma, noise in probe.by_sigma.items()]
    return {
        "label": probe.label,
        "point": probe.point,
        "method": probe.spec.method,
        "backbone": probe.spec.backbone,
        "tasks": list(probe.spec.tasks),
        "student": student,
        "sampler": probe.spec.sampler.model_dump(),
        "params": probe.spec.params,
        "states": probe.noise.states,
        "draws": probe.noise.draws,
        "all": _numbers(probe.noise),
        "by_sigma": by_sigma,
        "cosine_to_reference": probe.cosine,
        "mean_over_first": probe.slope.numbers(),
        "interference": probe.interference,
    }


def _numbers(noise: GradientNoise) -> dict:
    return {
        "snr": noise.snr.numbers(),
        "signal": noise.moments.signal,
        "trace": noise.moments.trace,
        "trace_from_states": noise.moments.from_states,
        "trace_from_estimator": noise.moments.from_estimator,
    }


def print_probes(probes: list[Probe], first: str, student: str) -> None:
    """Print two tables to stdout: gradient noise, and interference between tasks. `first` names the first method."""
    from rich.table import Table

    from bench.printing import terminal

    table = Table(title=f"gradient noise at student {student}: one update's gradient, mean over tasks")
    heads = (
        "method",
        "sigma",
        "signal / noise",
        "|mean|",
        "trace",
        "from states",
        "from estimator",
        f"cosine to {first}",
        f"mean relative to {first}",
    )
    for head in heads:
        table.add_column(head)
    for p in probes:
        last_cells = (f"{p.cosine:.3f}", str(p.slope))
        table.add_row(p.label, "all", *_cells(p.noise), *last_cells)
        for sigma, noise in p.by_sigma.items():
            table.add_row("", f"{sigma:.3f}", *_cells(noise), style="dim")
    out = terminal(150)
    out.print(table)
    pulls = Table(title="cosine between tasks' mean gradients (a task with itself: between two independent halves)")
    pulls.add_column("method")
    for pair in probes[0].interference:
        pulls.add_column(pair)
    for p in probes:
        pulls.add_row(p.label, *(f"{cosines['all']:+.3f}" for cosines in p.interference.values()))
    out.print(pulls)


def _cells(noise: GradientNoise) -> tuple[str, ...]:
    """SNR, norm of the mean, trace of the covariance, and the two shares of the trace."""
    moments = noise.moments
    norm = max(moments.signal, 0) ** 0.5  # an unbiased estimate of the squared norm may be negative
    shares = [_share(part, moments.trace) for part in (moments.from_states, moments.from_estimator)]
    return str(noise.snr), f"{norm:.3g}", f"{moments.trace:.3g}", *shares


def _share(part: float, trace: float) -> str:
    return f"{part / trace:.0%}" if trace else "-"
