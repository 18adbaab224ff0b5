"""What the student is matched to at a state: which teachers, extrapolated how far, in which parts of guidance.

With v_T a teacher's velocity, v_base the base's, v_c and v_u those with and without the prompt, w the guidance scale:

    guided       v = v_u + w (v_c - v_u): the student's at its scale to the teacher's at the teacher's own scale.
    branches     v_c and v_u apart (IBM of CFG-aware OPD, arXiv 2607.24731).
    difference   v_c and v_c - v_u apart (its PDM, both terms with weight 1).

Matching the guided sum alone leaves the parts undetermined: their errors can cancel, w e_c + (1 - w) e_u = 0, and show
at another scale. The parts do not contain a scale, so the teacher's own has no effect on what is matched: a
student without error is the teacher at EVERY scale, both at the same one.

Every part is then extrapolated away from the base, v_T + lambda (v_T - v_base), with both at the same scale (STEP-OPD),
and averaged over the teachers if all of them are asked (as in DiffusionOPSD, arXiv 2608.24646).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from bench.api.lab import STUDENT, Lab
from bench.api.method import Options
from bench.backbones.conditioning import Conditioning
from bench.config.bounds import Weight
from bench.sampler.distance import squared_distance
from bench.sampler.step import guided

if TYPE_CHECKING:
    from torch import Tensor

Matching = Literal["guided", "branches", "difference"]
Outputs = tuple["Tensor", ...]
"""What is matched at states [B, C, h, w], each of their shape: the guided velocity, or two parts of it."""
SELF_NORMALISE_EPS = 1e-8
"""Added to the mean absolute difference, as in Flow-Factory."""


class TargetOptions(Options):
    """Settings of what the student is matched to."""

    unsaid: ClassVar[tuple[str, ...]] = ("extrapolation", "matching", "teachers")

    extrapolation: Weight = 0.0
    """lambda of the target v_T + lambda (v_T - v_base), which goes beyond the teacher (STEP-OPD). Each target then also
    costs the base's velocity."""
    matching: Matching = "guided"
    """guided: the velocity after guidance. branches: those with and without the prompt. difference: that with the
    prompt, and the difference of the two (CFG-aware OPD, arXiv 2607.24731). The last two need a guidance scale other
    than 1, and a teacher's own scale then has no effect on what is matched."""
    teachers: Literal["own", "all"] = "own"
    """own: each task's prompts are for its own teacher. all: the target is the mean of all teachers' velocities for
    every prompt, by `weights` if given; each target costs every teacher's velocity (DiffusionOPSD)."""


class Field:
    """A velocity field for rollouts, guided, whose last call leaves what is matched in `outputs`."""

    def __init__(self, outputs: Callable[[Tensor, float | Tensor], Outputs], matching: Matching, guidance: float):
        self._outputs, self.matching, self.guidance = outputs, matching, guidance
        self.outputs: Outputs = ()

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The guided velocity [B, C, h, w] at states x and sigma (a number or [B])."""
        self.outputs = self._outputs(x, sigma)
        if self.matching == "guided":
            return self.outputs[0]
        v_cond, other = self.outputs
        return guided(v_cond, other if self.matching == "branches" else v_cond - other, self.guidance)


def student_field(lab: Lab, conditioning: Conditioning, matching: Matching) -> Field:
    """The student's velocity at its guidance scale, with gradients if the caller has them enabled."""
    scale = matched_scale(lab.guidance, matching)
    return Field(_outputs(lab, conditioning, STUDENT, scale, matching), matching, lab.guidance)


def target_field(
    lab: Lab, task: str, conditioning: Conditioning, options: TargetOptions, weights: dict[str, float]
) -> Field:
    """The target of a task's prompts, in rollouts at the guidance scale of the task's teacher.

    `weights` are the relative weights of the teachers, by default 1, if all of them are asked.
    """
    matching, beyond = options.matching, options.extrapolation
    asked = asked_teachers(task, lab.teachers, options)
    scales = {name: matched_scale(lab.teacher_guidance[name], matching) for name in asked}
    teachers = {name: _outputs(lab, conditioning, lab.teachers[name], scales[name], matching) for name in asked}
    bases = {scale: _outputs(lab, conditioning, None, scale, matching) for scale in scales.values()} if beyond else {}
    total = sum(weights.get(name, 1.0) for name in asked)

    def outputs(x: Tensor, sigma: float | Tensor) -> Outputs:
        of_base = {scale: base(x, sigma) for scale, base in bases.items()}
        mean: Outputs = ()
        for name, teacher in teachers.items():
            found = teacher(x, sigma)
            if beyond:
                found = tuple(v + beyond * (v - base) for v, base in zip(found, of_base[scales[name]], strict=True))
            if len(teachers) == 1:
                return found
            share = weights.get(name, 1.0) / total
            found = tuple(share * v for v in found)
            mean = tuple(m + v for m, v in zip(mean, found, strict=True)) if mean else found
        return mean

    return Field(outputs, matching, lab.teacher_guidance[task])


def asked_teachers(task: str, tasks: Iterable[str], options: TargetOptions) -> list[str]:
    """The tasks whose teachers are asked about a prompt of `task`."""
    return list(tasks) if options.teachers == "all" else [task]


def matched_scale(guidance: float, matching: Matching) -> float | None:
    """The guidance scale in what is matched; None for the parts of guidance, which have none."""
    return guidance if matching == "guided" else None


def matched_parts(matching: Matching) -> int:
    """The number of velocities that are matched per state."""
    return 1 if matching == "guided" else 2


def error(outputs: Outputs, targets: Outputs, weight: float | Tensor, self_normalise: bool = False) -> Tensor:
    """The loss per state, [B]: `weight` (a number or [B]) times the squared error of every part, added up.

    Self-normalised, each is divided by its mean absolute difference, held constant, where differences are taken in the
    space of the weight: sqrt(weight) (v - target).
    """
    errors = []
    for v, target in zip(outputs, targets, strict=True):
        squares = weight * squared_error(v, target)
        if self_normalise:
            size = weight**0.5 * (v.detach() - target).abs().flatten(1).mean(1)
            squares = squares / (size + SELF_NORMALISE_EPS)
        errors.append(squares)
    return errors[0] if len(errors) == 1 else errors[0] + errors[1]


def squared_error(v: Tensor, target: Tensor) -> Tensor:
    """Mean over elements of the squared velocity difference, [B] (DiffusionOPD's code averages; its paper sums)."""
    return squared_distance(v, target) / v[0].numel()


def _outputs(
    lab: Lab, conditioning: Conditioning, adapter: str | None, scale: float | None, matching: Matching
) -> Callable[[Tensor, float | Tensor], Outputs]:
    """What is matched of an adapter (None: the base), as a function of states and sigma."""
    if matching == "guided":
        velocity = lab.velocity(conditioning, adapter, scale)
        return lambda x, sigma: (velocity(x, sigma),)
    both = lab.branches(conditioning, adapter)

    def parts(x: Tensor, sigma: float | Tensor) -> Outputs:
        v_cond, v_uncond = both(x, sigma)
        return v_cond, v_uncond if matching == "branches" else v_cond - v_uncond

    return parts
