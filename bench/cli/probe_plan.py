"""What `bench probe` measures: its probes, the number of gradient estimates, and what is refused before any is made."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.backbones.teacher_files import find_teacher
from bench.config.contradictions import leaves
from bench.config.grid import overrides_of, recipes, variants
from bench.config.resolve import resolve
from bench.config.settings import parse_override
from bench.config.spec import Spec
from bench.errors import UsageError
from bench.registry import find, refuse_repeats
from bench.system.outputs import check_output
from bench.system.places import check_writable
from bench.system.workers import refuse_several
from bench.training.teacher_sets import check_teachers, require_fit
from bench.weights.hub import PREFIX as HUB

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

    @property
    def apart(self) -> int:
        """Number of states of a reference gradient, each with one estimate."""
        return 2 * self.states

    @property
    def halves(self) -> int:
        """Number of estimates in each half of the measurement of interference."""
        return max(2, self.states // 4)

    def estimates(self, levels: int, reference: bool) -> int:
        """Number of gradient estimates over all tasks in one probe, of a sampler with this many noise levels.

        `reference` says whether the probe also measures the reference gradient of its point of the grid.
        """
        measured = self.states * self.draws * (1 + (levels if self.by_sigma else 0))
        return (self.apart if reference else 0) + measured + 2 * self.halves


def plan_probe(asked: Probing, root: Path) -> list[Member]:
    """Return the probes to carry out.

    Raises UsageError before any model is loaded if a method, setting, student or output file cannot be used, and
    MissingError for a teacher that does not exist.
    """
    refuse_several("probe")
    specs = asked.specs()
    check_teachers([spec for _, _, spec in specs])
    output = Path(asked.output) if asked.output else None
    check_output(output)
    check_writable(root / "cache")
    if asked.student != "base" and not asked.student.startswith(HUB):
        _, _, first = specs[0]
        require_fit(first, find_teacher("student", asked.student))
    return specs


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
