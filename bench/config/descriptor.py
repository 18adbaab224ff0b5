"""What is known about a backbone without loading it. This file does not import torch.

Return types from higher layers are described in words, because this layer cannot import them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.config.compute import Compute
from bench.sampler.levels import Levels

if TYPE_CHECKING:
    from bench.config.spec import Spec
    from bench.sampler.rollout import Sampler


@dataclass(frozen=True)
class Descriptor:
    """Names, files and factories of one backbone."""

    name: str
    """Name of the backbone in records and messages."""
    world: str
    """Kind of images it draws, which decides the detectors and the vocabulary: a key of the tasks' tables ('micro',
    'photo')."""
    levels: Levels | Callable[[Compute], Levels]
    """The noise levels that it was trained on, by its scheduler's configuration; a function if they depend on the
    resolution."""
    load: Callable[..., Any]
    """(device, compute=Compute(), cache=None) -> FlowBackbone; `cache` is the folder for encoded prompts."""
    fingerprint: Callable[[], str]
    """() -> content hash of its weights."""
    recipes: tuple[Path, ...] = ()
    """Folders of <method>.yaml files with settings tuned for this backbone; they override the method's defaults. Of
    several files for a method, the one in the first folder counts."""
    backward_cost: float | None = None
    """Forward passes that a backward pass to a LoRA adapter takes, as measured; None if that is not known."""
    teachers: Path | None = None
    """Folder of shipped teacher adapters, with one subfolder per task."""
    size: Callable[..., Any] | None = None
    """compute -> Size without loading weights, or None if the size is unknown. Leave it None if hours
    and memory are not to be predicted for this backbone."""
    shape_only: Callable[..., Any] | None = None
    """(device, compute) -> FlowBackbone of the published size with random weights, for `bench perf`."""
    own: Callable[[], dict[str, dict[str, Any]]] = dict
    """() -> {section of a spec: {setting: value that this backbone uses by default}}. Setting one of these values
    explicitly does not change the run's hash."""
    defaults: Callable[[], dict[str, Any]] = dict
    """() -> settings that apply under every recipe: sensible compute settings for this backbone."""
    check: Callable[..., object] = lambda compute: None
    """compute -> None; raises UsageError for settings that this backbone does not support. Called before loading."""
    evaluations: Path | None = None
    """Folder of shipped evaluations of the base and the shipped teachers, named as in the cache of a results folder
    (bench/training/references.py). Models and settings that are not among them are evaluated."""
    base_guidance: dict[str, float] | None = None
    """task -> guidance scale at which the untrained base scores highest on validation prompts; None if unknown."""
    embedded_guidance: bool = False
    """Whether its network takes the guidance scale as an input, as distilled models do, and not as classifier-free
    guidance, which needs a second pass without the prompt."""

    def levels_at(self, compute: Compute) -> Levels:
        """The noise levels at the resolution of `compute`."""
        return self.levels(compute) if callable(self.levels) else self.levels

    def sampler(self, spec: "Spec") -> "Sampler":
        """The sampler of a spec's rollouts. Raises UsageError for invalid settings."""
        return spec.sampler.build(self.levels_at(spec.compute), self.embedded_guidance)

    def evaluation_sampler(self, spec: "Spec") -> "Sampler":
        """The sampler of a spec's held-out evaluations."""
        return spec.evaluation.build(self.levels_at(spec.evaluation_compute), self.embedded_guidance)

    def usual_guidance(self, model: str, task: str, spec: "Spec") -> float:
        """The scale at which a run scores "base", "teacher TASK" or "student" where it does not choose one.

        The base has its best known scale, a teacher its own, a student that of the run.
        """
        if model == "base":
            return (self.base_guidance or {}).get(task, spec.evaluation.scale)
        return spec.teacher_guidance.get(model.removeprefix("teacher "), spec.evaluation.scale)
