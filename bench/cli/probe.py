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
from bench.probes.gradient import GradientNoise, Moments, gradient_noise
from bench.probes.interference import interference
from bench.registry import find, refuse_repeats
from bench.system.files import json_bytes
from bench.system.outputs import check_output, write_output
from bench.system.places import check_writable
from bench.training.laboratory import laboratory
from bench.training.teacher_sets import check_teachers

HELD_APART = 10_000
"""First state of the reference gradient: far from those of the estimates, so that the cosine is not flattered."""

IDLE = ("budget", "optimizer", "ema", "evaluation", "probes", "checkpoint_every")
"""Sections of settings that change nothing at a frozen student."""


@dataclass(frozen=True)
class Probing:
    """What a command asks for; plain data, as a job's work."""

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

    def specs(self) -> list[tuple[str, tuple[str, ...], Spec]]:
        """As `probe_specs`."""
        return probe_specs(self.methods, self.tasks, self.backbone, self.axes, self.overrides, self.student)


def carry_out_probe(asked: Probing, root: Path, placement: Placement) -> None:
    """Measure here or as a job, and print the tables."""
    if placement.executor == "inline":
        probe_methods(asked, root)
        return
    device = asked.specs()[0][-1].device
    carry_out_command("probe", asdict(asked), measure, root, placement, device)


def measure(work: dict[str, Any], root: Path) -> None:
    """What a job does."""
    probe_methods(Probing(**work), root)


@dataclass(frozen=True)
class Probe:
    """What was measured of one method at one point of the grid."""

    label: str
    point: tuple[str, ...]
    """Its place on the axes that all methods share; estimates compare within one."""
    spec: Spec
    noise: GradientNoise
    cosine: float
    """To the reference: the mean of the first method at this point, over states of its own."""
    slope: Estimate
    """Mean along the reference, over the first method's: 1 where the two have the same mean."""
    by_sigma: dict[float, GradientNoise]
    interference: dict[str, dict[str, float]]


def probe_methods(asked: Probing, root: Path) -> None:
    """Measure, print, and write JSON if asked. Raises UsageError before anything loads where a method cannot run."""
    specs, states = asked.specs(), asked.states
    check_teachers([spec for _, _, spec in specs])
    output = Path(asked.output) if asked.output else None
    check_output(output)
    check_writable(root / "cache")
    probes: list[Probe] = []
    firsts: dict[tuple[str, ...], tuple[GradientNoise, GradientNoise]] = {}  # by point: its reference and first method
    for label, point, spec in specs:
        lab, method = laboratory(spec, asked.student, root)
        if point not in firsts:
            apart = range(HELD_APART, HELD_APART + 2 * states)
            reference = gradient_noise(nested(method, lab, spec.tasks, apart, 1))
        else:
            reference, _ = firsts[point]
        measured = lambda where, m=method, s=spec, r=reference: gradient_noise(  # noqa: E731
            nested(m, where, s.tasks, range(states), asked.draws), r.mean
        )
        noise = measured(lab)
        _, first = firsts.setdefault(point, (reference, noise))
        levels = lab.sampler.schedule.sigmas[:-1] if asked.by_sigma else []
        split = {sigma: measured(replace(lab, sigma=sigma)) for sigma in levels}
        pulls = interference(method, lab, spec.tasks, max(2, states // 4))
        probes.append(
            Probe(label, point, spec, noise, noise.cosine(reference.mean), noise.slope(first), trained(split), pulls)
        )
    print_probes(probes, asked.methods[0], asked.student)
    if output:
        write_output(output, json_bytes([as_json(p, asked.student) for p in probes]))


def probe_specs(
    methods: list[str], tasks: list[str], backbone: str, axes: list[str], overrides: list[str], student: str = "base"
) -> list[tuple[str, tuple[str, ...], Spec]]:
    """(label, point of the shared grid, spec) of every probe; raises UsageError.

    Estimates compare at one student on one sampler: a method's recipe gives way to the first's there.
    """
    if not methods:
        raise UsageError("the method list is empty; name methods")
    for method in methods:
        if not find("method", method).trains:
            raise UsageError(f"method {method!r} does not train: it has no gradient to probe")
    refuse_repeats("method", methods)
    own = {method: overrides_of(method, methods, overrides) for method in methods}
    found = []
    for v in variants(axes, recipes(methods, tasks, backbone), overrides):
        _refuse_idle([*own[v.method], *v.overrides], student)
        first = resolve(methods[0], tasks, 0, backbone, overrides=[*own[methods[0]], *v.common])
        shared = [f"{part}={json.dumps(getattr(first, part).model_dump())}" for part in ("sampler", "lora")]
        spec = resolve(v.method, tasks, 0, backbone, overrides=[*shared, *own[v.method], *v.overrides])
        found.append((v.label, v.common, spec))
    return found


def _refuse_idle(overrides: list[str], student: str) -> None:
    """Raise UsageError for a setting that changes nothing at a frozen student, as a learning rate."""
    for key in (key for text in overrides for key in leaves(parse_override(text))):
        section = key.partition(".")[0]
        if key == "lora.start":
            raise UsageError("lora.start does nothing in a probe: --student names the adapter that is probed")
        if section == "lora" and student != "base":
            raise UsageError(f"{key} does nothing in a probe of an adapter: --student {student} has a shape of its own")
        if section in IDLE:
            raise UsageError(f"{key} does nothing in a probe, which trains nothing: leave it out")


def trained(split: dict[float, GradientNoise]) -> dict[float, GradientNoise]:
    """Without the noise levels at which the method never trains."""
    return {sigma: noise for sigma, noise in split.items() if noise.gram.any()}


def as_json(probe: Probe, student: str) -> dict:
    """Plain numbers, without the gradient itself."""
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
        "by_sigma": [{"sigma": sigma} | _numbers(noise) for sigma, noise in probe.by_sigma.items()],
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
    """Two tables to stdout."""
    from rich.table import Table

    from bench.printing import terminal

    table = Table(title=f"gradient noise at student {student}: one update's gradient, mean over tasks")
    heads = (
        "method", "sigma", "signal / noise", "|mean|", "trace", "from states", "from estimator", f"cosine to {first}",
        f"mean over {first}'s",
    )  # fmt: skip
    for head in heads:
        table.add_column(head)
    for p in probes:
        table.add_row(p.label, "all", *_cells(p.noise), f"{p.cosine:.3f}", str(p.slope))
        for sigma, noise in p.by_sigma.items():
            table.add_row("", f"{sigma:.3f}", *_cells(noise), style="dim")
    out = terminal(150)
    out.print(table)
    pulls = Table(title="cosine between tasks' mean gradients (a task with itself: two independent halves)")
    pulls.add_column("method")
    for pair in probes[0].interference:
        pulls.add_column(pair)
    for p in probes:
        pulls.add_row(p.label, *(f"{cosines['all']:+.3f}" for cosines in p.interference.values()))
    out.print(pulls)


def _cells(noise: GradientNoise) -> tuple[str, ...]:
    n: Moments = noise.moments
    share = lambda part: f"{part / n.trace:.0%}" if n.trace else "-"  # noqa: E731
    size = f"{max(n.signal, 0) ** 0.5:.3g}"
    return str(noise.snr), size, f"{n.trace:.3g}", share(n.from_states), share(n.from_estimator)
