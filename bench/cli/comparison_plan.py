"""What a comparison consists of: its lines and runs, and what is refused before any of them starts."""

from dataclasses import dataclass
from pathlib import Path

from bench.config.contradictions import leaves
from bench.config.grid import Variant, method_names, overrides_of, recipes, variants
from bench.config.resolve import describe, resolve
from bench.config.settings import parse_override
from bench.config.spec import Spec
from bench.config.trackers import check_trackers
from bench.errors import UsageError
from bench.prediction.cost import run_nfe
from bench.registry import task_names
from bench.store.run import Run
from bench.training.teacher_sets import check_teachers, taught_otherwise

POINTS = 6
"""Number of held-out evaluations along the budget, for anytime curves. Six include the thirds of the budget, at which a
cascade of three tasks changes task."""
EQUAL = 0.05
"""Relative difference up to which two costs count as equal, as in the report (report/lines.py)."""


@dataclass(frozen=True)
class Comparison:
    """A comparison that can be carried out."""

    root: Path
    """The results folder."""
    tasks: list[str]
    backbone: str
    fingerprint: str
    """Hash of the backbone."""
    seeds: list[int]
    budget: int
    """Training NFE per run."""
    overrides: list[str]
    """The user's --set values."""
    lines: list[Variant]
    runs: dict[tuple[str, int], Run]
    """(label of the line, seed) -> run, line by line."""
    notes: list[str]
    """Lines of text for the user, to be printed before anything runs."""

    @property
    def named(self) -> dict[str, Run]:
        """Label of a job -> its run."""
        return {f"{label}, seed {seed}": run for (label, seed), run in self.runs.items()}

    @property
    def split(self) -> str:
        """The prompts that every line is evaluated on."""
        return next(iter(self.runs.values())).spec.evaluation.split

    @property
    def grid(self) -> tuple[float, ...]:
        """The guidance scales of the final scores, if every model has its own."""
        return next(iter(self.runs.values())).spec.evaluation.guidance_grid


def plan_comparison(
    methods: list[str],
    tasks: list[str],
    backbone: str,
    seeds: list[int],
    budget: int | None,
    axes: list[str],
    overrides: list[str],
    root: Path,
) -> Comparison:
    """Return the comparison that the command's options describe. Writes nothing.

    Raises UsageError if the lines cannot be compared, and MissingError for a teacher that does not exist.
    """
    tasks = task_names(tasks)
    methods = method_names(methods, tasks)
    budget = budget or default_budget(tasks, backbone)
    own = {method: overrides_of(method, methods, overrides) for method in methods}
    lines = variants(axes, recipes(methods, tasks, backbone), overrides)
    points = [(line, seed) for line in lines for seed in seeds]
    members = {
        (line.label, seed): settle(line, tasks, seed, backbone, budget, own[line.method]) for line, seed in points
    }
    fingerprint = describe(backbone).fingerprint()
    runs = {key: Run(root, spec, fingerprint) for key, spec in members.items()}
    refuse_twins(runs)
    specs = list(members.values())
    by_label = {label: spec for (label, _), spec in members.items()}
    _refuse_splits({label: spec.evaluation.split for label, spec in by_label.items()})
    _refuse_grids({label: spec.evaluation.guidance_grid for label, spec in by_label.items()})
    check_teachers(specs)
    check_trackers(specs[0].trackers)
    notes = [*taught_otherwise(specs, root), *_overshoot(by_label, budget)]
    return Comparison(root, tasks, backbone, fingerprint, seeds, budget, overrides, lines, runs, notes)


def default_budget(tasks: list[str], backbone: str) -> int:
    """Training NFE of analytic OPD's recipe: the budget per run without --budget.

    Raises UsageError for a recipe with a budget in seconds.
    """
    spec = resolve("opd_analytic", tasks, backbone=backbone, checked=False)
    nfe = spec.budget.nfe or run_nfe(spec)
    if nfe is None:
        raise UsageError(f"the recipe of opd_analytic on {backbone} has a budget in seconds: give --budget in NFE")
    return nfe


def settle(
    variant: Variant,
    tasks: list[str],
    seed: int,
    backbone: str,
    budget: int,
    overrides: list[str],
) -> Spec:
    """The spec of one line and seed. Raises UsageError if the overrides or the line's settings set a budget."""
    written = [*overrides, *variant.overrides]
    keys = {key: text for text in written for key in leaves(parse_override(text))}
    parts_of_budget = [text for key, text in keys.items() if key.startswith("budget.")]
    own = keys.get("budget", parts_of_budget[0] if parts_of_budget else None)
    if own:
        raise UsageError(f"{own!r} sets a budget, but lines are compared at the same one: use --budget instead")
    settings = [f"budget={{nfe: {budget}}}"]
    if "evaluation.points" not in keys:
        points = ",".join(f"{(i + 1) / POINTS:.4f}" for i in range(POINTS))
        settings.append(f"evaluation.points=[{points}]")
    settings += written
    return resolve(variant.method, tasks, seed, backbone, overrides=settings)


def refuse_twins(runs: dict[tuple[str, int], Run]) -> None:
    """Raise UsageError if two lines have the same runs, as from --grid lr=1e-3,0.001, and would be listed twice."""
    first: dict[Path, str] = {}
    for (label, _), run in runs.items():
        other = first.setdefault(run.folder, label)
        if other != label:
            raise UsageError(f"the lines {other!r} and {label!r} are the same runs: give their settings only once")


def beyond_budget(budget: float, spent: dict[str, float]) -> dict[str, float]:
    """Label -> NFE of the lines that exceed the budget by more than EQUAL, which makes them not comparable.

    Runs end on whole updates, so a line whose updates are large relative to the budget overshoots it.
    """
    limit = budget * (1 + EQUAL)
    return {label: count for label, count in spent.items() if count > limit}


def _refuse_splits(splits: dict[str, str]) -> None:
    """Raise UsageError unless all lines are evaluated on the same split; `splits` maps a line's label to its split."""
    (first, split), *others = splits.items()
    for label, other in others:
        if other != split:
            raise UsageError(
                f"{first!r} is evaluated on the {split} prompts and {label!r} on the {other} prompts: compare lines "
                "with the same evaluation.split"
            )


def _refuse_grids(grids: dict[str, tuple[float, ...]]) -> None:
    """Raise UsageError unless all lines choose their guidance from the same scales; `grids` maps a label to them."""
    (first, grid), *others = grids.items()
    for label, other in others:
        if other != grid:
            raise UsageError(
                f"{first!r} and {label!r} have different scales in evaluation.guidance_grid: give all lines the same"
            )


def _overshoot(specs: dict[str, Spec], budget: int) -> list[str]:
    """Notes, before training, on lines that will exceed the budget too far; `specs` maps a line's label to a spec."""
    over = beyond_budget(budget, {label: run_nfe(spec) or 0 for label, spec in specs.items()})
    return [
        f"{label} will spend {count:,} training NFE of --budget {budget:,}, because it ends on a whole update; more "
        f"than {EQUAL:.0%} over the budget, it is not comparable with the other lines: choose a larger --budget"
        for label, count in over.items()
    ]
