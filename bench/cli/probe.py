"""`bench probe`: gradient noise and interference of methods at one frozen student."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.analysis.stats import Estimate
from bench.cli.probe_plan import Probing, plan_probe
from bench.config.spec import Spec
from bench.jobs.placement import Placement
from bench.jobs.runs import carry_out_command
from bench.probes.estimates import nested
from bench.probes.gradient import GradientNoise, gradient_noise
from bench.probes.interference import interference
from bench.system.files import json_bytes
from bench.system.outputs import write_output
from bench.training.laboratory import laboratory

HELD_APART = 10_000
"""First state (seed of prompts and noise) of the reference gradient. Estimates use states from 0, so that the two share
no samples, which would bias the cosine upwards."""


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
    specs, states = plan_probe(asked, root), asked.states
    output = Path(asked.output) if asked.output else None
    probes: list[Probe] = []
    # By point of the grid: the reference gradient and the first method's measurement.
    firsts: dict[tuple[str, ...], tuple[GradientNoise, GradientNoise]] = {}
    for label, point, spec in specs:
        lab, method = laboratory(spec, asked.student, root)
        if point not in firsts:
            apart = range(HELD_APART, HELD_APART + asked.apart)
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
                interference=interference(method, lab, spec.tasks, asked.halves),
            )
        )
    print_probes(probes, asked.methods[0], asked.student)
    if output:
        write_output(output, json_bytes([as_json(p, asked.student) for p in probes]))


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
