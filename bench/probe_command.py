"""`bench probe`: gradient noise and interference of methods at one frozen student."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UsageError
from bench.files import write_atomic
from bench.lab import STUDENT
from bench.probes.estimates import ProbeLab, nested
from bench.probes.gradient import GradientNoise, gradient_noise
from bench.probes.interference import interference
from bench.registry import find
from bench.runner import equip, load_backbone
from bench.spec import Spec, describe, resolve
from bench.store import results_root
from bench.teachers import locate

HELD_APART = 10_000
"""First state of the reference gradient: far from those of the estimates, so that the cosine is not flattered."""


@dataclass(frozen=True)
class Probe:
    """What was measured of one method."""

    method: str
    noise: GradientNoise
    cosine: float
    """To the reference: the first method's mean over states of its own."""
    interference: dict[str, dict[str, float]]


def probe_methods(
    methods: list[str],
    tasks: list[str],
    student: str,
    backbone: str,
    overrides: list[str],
    states: int,
    draws: int,
    results: Path,
    output: Path | None,
) -> None:
    """Measure, print, and write JSON if asked. Raises UsageError before anything loads where a method cannot run."""
    if not methods:
        raise UsageError("the method list is empty; name methods")
    specs = [resolve(method, tasks, 0, backbone, overrides=overrides) for method in methods]
    # Estimates are compared at one student, so of one shape: the first method's.
    specs = [spec.model_copy(update={"lora": specs[0].lora}) for spec in specs]
    root = results_root(results)
    probes, reference = [], None
    for spec in specs:
        lab, method = laboratory(spec, student, root)
        if reference is None:
            reference = gradient_noise(
                nested(method, lab, spec.tasks, range(HELD_APART, HELD_APART + 2 * states), 1)
            ).mean
        noise = gradient_noise(nested(method, lab, spec.tasks, range(states), draws))
        pulls = interference(method, lab, spec.tasks, max(2, states // 4))
        probes.append(Probe(spec.method, noise, noise.cosine(reference), pulls))
    print_probes(probes, student)
    if output:
        write_atomic(output, (json.dumps([as_json(p) for p in probes], indent=1) + "\n").encode())


def laboratory(spec: Spec, student: str, root: Path):
    """Backbone, teachers and a student: the base (a fresh adapter of the spec's shape) or an adapter folder."""
    from bench.backbones.adapters import TARGETS, Shape

    descriptor = describe(spec.backbone)
    backbone = load_backbone(spec.backbone, spec.device)
    if student == "base":
        shape = Shape(spec.lora.rank, spec.lora.alpha, spec.lora.targets or TARGETS)
        backbone.adapters.add(STUDENT, shape, seed=0, trainable=True)
    else:
        backbone.adapters.load(STUDENT, Path(student), trainable=True)
    method_class = find("method", spec.method)
    if not method_class.trains:
        raise UsageError(f"method {spec.method!r} does not train: it has no gradient to probe")
    method = method_class(method_class.Options.model_validate(spec.params))
    for name in method.adapters:
        backbone.adapters.add(name, backbone.adapters.shapes[STUDENT])
        backbone.adapters.load_state(name, backbone.adapters.state(STUDENT))
    teachers = locate(spec, descriptor, root, descriptor.fingerprint())
    return ProbeLab.of(equip(spec, descriptor, backbone, teachers)), method


def as_json(probe: Probe) -> dict:
    """Plain numbers, without the gradient itself."""
    noise = probe.noise
    return {
        "method": probe.method,
        "states": noise.states,
        "draws": noise.draws,
        "snr": [noise.snr.value, noise.snr.low, noise.snr.high],
        "signal": noise.moments.signal,
        "trace": noise.moments.trace,
        "trace_from_states": noise.moments.from_states,
        "trace_from_estimator": noise.moments.from_estimator,
        "cosine_to_reference": probe.cosine,
        "interference": probe.interference,
    }


def print_probes(probes: list[Probe], student: str) -> None:
    """Two tables to stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"gradient noise at student {student}: one update's gradient, mean over tasks")
    heads = (
        "method",
        "signal / noise",
        "|mean|",
        "trace",
        "from states",
        "from estimator",
        f"cosine to {probes[0].method}",
    )
    for head in heads:
        table.add_column(head)
    for p in probes:
        n = p.noise.moments
        share = lambda part, n=n: f"{part / n.trace:.0%}" if n.trace else "-"  # noqa: E731
        table.add_row(
            p.method, str(p.noise.snr), f"{max(n.signal, 0) ** 0.5:.3g}", f"{n.trace:.3g}",
            share(n.from_states), share(n.from_estimator), f"{p.cosine:.3f}",
        )  # fmt: skip
    terminal = Console(width=max(120, Console().width), highlight=False)
    terminal.print(table)
    pulls = Table(title="cosine between tasks' mean gradients (a task with itself: two independent halves)")
    pulls.add_column("method")
    for pair in probes[0].interference:
        pulls.add_column(pair)
    for p in probes:
        pulls.add_row(p.method, *(f"{cosines['all']:+.3f}" for cosines in p.interference.values()))
    terminal.print(pulls)
