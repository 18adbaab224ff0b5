"""Every model's final scores at its own best guidance scale, chosen on validation prompts (evaluation.guidance_grid).

A model that was trained without guidance may gain from it, and another may not: a single scale would favour one.
"""

from typing import Any

from bench.analysis.records import score
from bench.config.spec import CHOICE, Spec
from bench.training.references import References


def at_best_guidance(
    models: dict[str, tuple[str | None, str]], references: References, spec: Spec, student: dict[str, dict]
) -> dict[str, Any]:
    """Parts of a run's summary.

    - models: model -> task -> the record of its final evaluation, at its best scale for the task.
    - guidance: model -> task -> that scale.
    - tried: model -> task -> score on validation prompts of each scale, by which it was chosen.
    - along: model -> task -> the record at `evaluation.guidance`, with which scores along training are compared.

    `models`: model -> (its adapter's name on the backbone, hash of its weights). `student`: the last records of
    evaluations.jsonl. Of scales with equal scores the smallest is taken.
    """
    found: dict[str, Any] = {"models": {}, "guidance": {}, "tried": {}, "along": {"student": student}}
    for model, (adapter, weights) in models.items():
        parts = {name: part.setdefault(model, {}) for name, part in found.items()}
        for task in spec.tasks:
            tried = {
                scale: score(references.of(model, adapter, task, weights, scale, CHOICE, keep=False))
                for scale in spec.evaluation.guidance_grid
            }
            best = max(tried, key=lambda scale: tried[scale])
            parts["guidance"][task] = best
            parts["tried"][task] = {f"{scale:g}": value for scale, value in tried.items()}
            parts["models"][task] = references.of(model, adapter, task, weights, best)
            if model != "student":
                usual = spec.evaluation.scale
                parts["along"][task] = references.of(model, adapter, task, weights, usual, keep=False)
    return found


def at_the_edge(guidance: dict[str, dict[str, float]], spec: Spec) -> list[str]:
    """Remarks on models whose best scale is at an end of the grid, so that one beyond it may be better."""
    grid = spec.evaluation.guidance_grid
    ends = {grid[0]: "smallest", grid[-1]: "largest"}
    return [
        f"the best guidance scale of {model} on {task} is {scale:g}, the {ends[scale]} of evaluation.guidance_grid"
        for model, scales in guidance.items()
        for task, scale in scales.items()
        if scale in ends
    ]
