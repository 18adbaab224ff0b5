"""One gradient out of the tasks' gradients: rules of gradient surgery, computed by TorchJD from their inner products.

Every rule gives weights a [T] that depend only on the matrix G_ij = g_i . g_j, and the combined gradient is the sum of
a_i g_i. The rows g_i are the tasks' gradients times the weights of the plan, so that `sum` is what is trained without a
rule. Rules that are defined with a mean over tasks are multiplied by T: for equal gradients every rule then gives that
sum (CAGrad 1 + c times it), so that learning rates and clipping mean the same. A task whose gradient is zero, as in RL
when all its rewards are equal, asks for nothing and is left out: taken literally, MGDA would then not train at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from pydantic import Field

from bench.api.lab import EMA, STUDENT, Lab
from bench.api.method import Options
from bench.config.bounds import Moderate
from bench.errors import BenchError, UsageError, unknown
from bench.lazy import torch
from methods.allocation import SOURCES, WINDOW, Allocation, AllocationName
from methods.counted import CountedMethod
from methods.preference import SOURCE as SLIDER
from methods.preference import PreferenceName, drawn, lattice, rank_factors
from methods.signal import MOSTLY, Signal, signal_shares

if TYPE_CHECKING:
    from torch import Tensor

    from bench.config.spec import Spec

RuleName = Literal["sum", "pcgrad", "mgda", "cagrad", "imtl_g", "aligned_mtl", "nash_mtl", "upgrad"]
MOST_POINTS = 100
"""Students of one run, which all are evaluated."""
CAGRAD_RADIUS = 0.5
"""The c of CAGrad, which its paper recommends between .4 and .5."""
MGDA_PRECISION = 1e-6
MGDA_ITERATIONS = 10_000
"""TorchJD's defaults stop Frank-Wolfe after steps of 1e-3, or 100."""
UPGRAD_REGULARISATION = 1e-8
"""Added to the diagonal of the products divided by their trace; TorchJD's 1e-4 moves the result by a percent."""
NASH_ITERATIONS, NASH_PRECISION = 200, 1e-10
"""Limits of Newton's method. If no combination of the gradients helps every task, the weights grow without bound."""


@dataclass(frozen=True)
class Rule:
    """A rule for combining gradients."""

    source: str
    """Paper and equation."""
    weights: Callable[[Tensor], Tensor]
    """Inner products [T, T] in float64 on the CPU -> weights [T]."""
    means: bool
    """Whether it is defined with a mean over tasks instead of a sum."""


def _torchjd(name: str, *settings: float) -> Callable[[Tensor], Tensor]:
    """A rule of TorchJD, which is imported when a run uses the rule."""

    def weights(products_TT: Tensor) -> Tensor:
        from torchjd import aggregation

        return getattr(aggregation, name)(*settings)(products_TT)

    return weights


def _upgrad(products_TT: Tensor) -> Tensor:
    from torchjd.aggregation import UPGradWeighting
    from torchjd.linalg import QuadprogProjector

    return UPGradWeighting(projector=QuadprogProjector(reg_eps=UPGRAD_REGULARISATION))(products_TT)


def _nash_mtl(products_TT: Tensor) -> Tensor:
    """The a > 0 with G a = 1 / a, for G divided by its trace.

    It minimises a' G a / 2 - sum log a. This is convex and self-concordant, so that the damped Newton method converges
    and keeps a > 0 (Boyd and Vandenberghe, Convex Optimization, Sec. 9.6). The authors' solver, which TorchJD has with
    a warning, starts from the last update's weights and need not converge.
    """
    scaled_TT, a = products_TT / products_TT.trace(), torch.ones(len(products_TT), dtype=products_TT.dtype)
    for _ in range(NASH_ITERATIONS):
        slope = scaled_TT @ a - 1 / a
        step = torch.linalg.solve(scaled_TT + torch.diag(a**-2), slope)
        decrement = (slope @ step).clamp(min=0).sqrt()
        a = a - step / (1 + decrement)
        if decrement < NASH_PRECISION:
            break
    return a


RULES = {
    "sum": Rule("the weighted sum", lambda products_TT: torch.ones(len(products_TT), dtype=products_TT.dtype), False),
    "pcgrad": Rule("PCGrad, arXiv 2001.06782, Alg. 1", _torchjd("PCGradWeighting"), False),
    "mgda": Rule(
        "MGDA, arXiv 1810.04650, Eq. 3 and Alg. 2", _torchjd("MGDAWeighting", MGDA_PRECISION, MGDA_ITERATIONS), True
    ),
    "cagrad": Rule(
        f"CAGrad, arXiv 2110.14048, Alg. 1, c = {CAGRAD_RADIUS}", _torchjd("CAGradWeighting", CAGRAD_RADIUS), True
    ),
    "imtl_g": Rule(
        "IMTL-G (Towards Impartial Multi-task Learning, ICLR 2021), Eq. 6", _torchjd("IMTLGWeighting"), True
    ),
    "aligned_mtl": Rule("Aligned-MTL, arXiv 2305.19000, Alg. 1", _torchjd("AlignedMTLWeighting"), True),
    "nash_mtl": Rule("Nash-MTL, arXiv 2202.01017, Claim 3.1", _nash_mtl, False),
    "upgrad": Rule("UPGrad, arXiv 2406.16232, Sec. 3", _upgrad, True),
}
assert tuple(RULES) == get_args(RuleName)


PIECE = 2**24
"""Elements of a gradient that are held in float64 at once; a student with all weights has billions."""


def products_of(gradients_TP: list[Tensor], weights: list[float] | None = None) -> Tensor:
    """Inner products [T, T] of flat gradients [P], with weights if given, summed in float64; float64 on the CPU."""
    scales = weights or [1.0] * len(gradients_TP)
    pieces = []
    for start in range(0, len(gradients_TP[0]), PIECE):
        rows = [(w * gradient[start : start + PIECE]).double() for w, gradient in zip(scales, gradients_TP)]
        pieces.append(torch.stack([torch.stack([a @ b for b in rows]) for a in rows]))
    return torch.stack(pieces).sum(0).cpu()


def combined_weights(rule: RuleName, products_TT: Tensor, seed: int) -> Tensor:
    """Weights [T] of the tasks' gradients by a rule, float64 on the CPU.

    `seed` is of the random order in which PCGrad visits the tasks. Raises BenchError if a rule finds no weights.
    """
    trained = products_TT.diagonal().nonzero().flatten()
    weights_T = torch.zeros(len(products_TT), dtype=products_TT.dtype)
    if not len(trained):
        return weights_T
    with torch.random.fork_rng(devices=[]):  # TorchJD draws from torch's global generator
        torch.manual_seed(seed)
        found = RULES[rule].weights(products_TT[trained][:, trained])
    if not found.isfinite().all():
        raise BenchError(f"params.combine {rule} finds no weights for gradients with products {products_TT.tolist()}")
    weights_T[trained] = found * (len(trained) if RULES[rule].means else 1)
    return weights_T


class CombiningOptions(Options):
    """Settings of methods that train on several tasks at once."""

    unsaid: ClassVar[tuple[str, ...]] = ("weights", "allocation", "combine", "preference", "divisions")

    weights: dict[str, Moderate] = Field(default={})
    """task -> relative weight of its gradient, by default 1; the weights are normalised to add up to 1."""
    allocation: AllocationName = "equal"
    """What adapts the weights while training (methods/allocation.py). equal: nothing. by_loss: in proportion to the
    distance to the goal (Open-MOPD, arXiv 2608.19098). by_gap: to the part of the first distance that remains.
    by_progress: more for tasks that progress slowly (dynamic weight average, arXiv 1803.10704)."""
    combine: RuleName = "sum"
    """How the tasks' gradients become one (methods/combining.py). Every rule but sum keeps one gradient per task."""
    preference: PreferenceName = "fixed"
    """fixed: the student is trained for `weights`. drawn: one student is trained for all weights, with others in every
    update (ParetoSlider; methods/preference.py). It is evaluated and saved as the run's student at equal weights, and
    at the points of a lattice, which are a front."""
    divisions: Annotated[int, Field(ge=1, le=20)] = 2
    """With preference drawn: the points of its front are all multiples of 1 / `divisions` on the simplex."""


class CombiningMethod(CountedMethod):
    """Methods whose settings `weights`, `allocation` and `combine` choose how their tasks' gradients become one."""

    Options: ClassVar[type[CombiningOptions]] = CombiningOptions
    variants: ClassVar[dict[str, str]] = {
        **{f"params.combine={name}": rule.source for name, rule in RULES.items()},
        **{f"params.allocation={name}": source for name, source in SOURCES.items()},
        "params.preference=drawn": SLIDER,
    }

    measures_distance: ClassVar[bool] = True
    """Whether `distance` is defined, which `allocation` needs."""

    def __init__(self, options: CombiningOptions):
        super().__init__(options)
        self.allocation = Allocation(options.allocation)
        self.signal = Signal()

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse weights of tasks that the run does not train, and all settings where updates have one task."""
        super().check(spec, sampler)
        options = cls.Options.model_validate(spec.params)
        for task in options.weights:
            if task not in spec.tasks:
                raise unknown("task in params.weights", task, spec.tasks)
        if options.allocation != "equal" and not cls.measures_distance:
            raise UsageError(
                f"params.allocation {options.allocation} needs the distance of every task to its goal, which method "
                f"{cls.name!r} does not measure: set it to equal"
            )
        given = {
            "weights": bool(options.weights),
            f"allocation {options.allocation}": options.allocation != "equal",
            f"combine {options.combine}": options.combine != "sum",
            "preference drawn": options.preference == "drawn",
        }
        for setting in (name for name, is_given in given.items() if is_given):
            if len(spec.tasks) == 1:
                raise UsageError(f"params.{setting} combines the gradients of several tasks, but the run has one")
            if spec.params.get("batches") == "alternate":
                raise UsageError(
                    f"params.{setting} combines the gradients of several tasks, but with params.batches alternate "
                    "every update has one: set params.batches mixed"
                )

        if options.preference == "drawn":
            cls._check_drawn(spec, options)
        elif options.divisions != CombiningOptions.model_fields["divisions"].default:
            raise UsageError("params.divisions are the points of a front: set params.preference drawn as well")

    @staticmethod
    def _check_drawn(spec, options: CombiningOptions) -> None:
        """Refuse what a student that is conditioned on drawn weights cannot have."""
        what, rank, tasks = "params.preference drawn", spec.lora.rank, len(spec.tasks)
        if rank % tasks and not spec.full_finetuning:
            raise UsageError(
                f"{what} divides the rank of LoRA into one part per task, but lora.rank {rank} is no multiple of "
                f"{tasks} tasks: set it to {-(-rank // tasks) * tasks}"
            )
        if (points := comb(options.divisions + tasks - 1, tasks - 1)) > MOST_POINTS:
            fits = [n for n in range(1, options.divisions) if comb(n + tasks - 1, tasks - 1) <= MOST_POINTS]
            cure = f"set params.divisions to {fits[-1]} or less" if fits else "it has too many tasks"
            raise UsageError(
                f"params.divisions {options.divisions} of {tasks} tasks are {points:,} points, each of which is "
                f"evaluated; at most {MOST_POINTS} are allowed: {cure}"
            )
        others = {
            "params.weights": bool(options.weights),  # its points have the weights
            f"params.allocation {options.allocation}": options.allocation != "equal",
            f"params.combine {options.combine}": options.combine != "sum",
            "params.start merge": spec.params.get("start") == "merge",
            "params.teachers all": spec.params.get("teachers") == "all",  # one target, whatever the weights
            "lora.start": bool(spec.lora.start),
            "another kind of adapter than plain LoRA": not spec.lora.plain,
            "full_finetuning": spec.full_finetuning,
            "probes.interference": bool(spec.probes.interference),
        }
        for setting in (name for name, is_given in others.items() if is_given):
            raise UsageError(f"{what} trains another student in every update and cannot be used with {setting}")

    @classmethod
    def points(cls, spec: Spec) -> tuple[str, ...]:
        """The lattice of preferences if they are drawn."""
        options = cls.Options.model_validate(spec.params)
        return tuple(lattice(list(spec.tasks), options.divisions)) if options.preference == "drawn" else ()

    def show(self, lab: Lab, point: str | None) -> None:
        """Condition the average on a point of the lattice, or on `weights`."""
        if self.options.preference == "drawn":
            preferences = lattice(list(lab.tasks), self.options.divisions)
            self._condition(lab, preferences[point] if point else self._weights(lab), [EMA])

    @staticmethod
    def _condition(lab: Lab, preference: dict[str, float], names: Iterable[str]) -> None:
        adapters = lab.backbone.adapters
        for name in names:
            adapters.gate(name, rank_factors(preference, adapters.configs[name].r))

    def _weights(self, lab: Lab) -> dict[str, float]:
        """The tasks' weights, adapted by `allocation` and normalised."""
        weights = self.allocation.weighted({task: self.options.weights.get(task, 1.0) for task in lab.tasks})
        return {task: weight / sum(weights.values()) for task, weight in weights.items()}

    def plan(self, lab: Lab) -> dict[str, float]:
        """Weight all tasks equally, by `weights` and `allocation`, or by chance; log the weights if they change."""
        by_chance = self.options.preference == "drawn"
        change = by_chance or self.options.allocation != "equal"
        if not self.options.weights and not change:
            return super().plan(lab)
        plan = drawn(list(lab.tasks), lab.numpy_generator("preference")) if by_chance else self._weights(lab)
        if by_chance:
            # The method's own adapters are older versions of the student.
            self._condition(lab, plan, (STUDENT, *self.adapters))
        for task, weight in plan.items() if change else ():
            lab.note(f"weight/{task}", weight)
        return plan

    def distance(self, lab: Lab, task: str) -> float:
        """How far the task was from its goal in this update, at least 0; a mean over this process's prompts."""
        raise NotImplementedError(f"{self.name} does not measure it")

    def after_update(self, lab: Lab) -> None:
        """Record the tasks' distances if the weights adapt to them."""
        super().after_update(lab)
        if self.options.allocation != "equal":
            self.allocation.record(lab, {task: self.distance(lab, task) for task in lab.tasks})

    def state(self) -> dict[str, Tensor]:
        """The distances so far, if the weights adapt to them, and the last gradients, if a rule combines them."""
        return super().state() | self.allocation.state() | self.signal.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the distances and the last gradients."""
        super().load_state(state)
        self.allocation.load_state(state)
        self.signal.load_state(state)

    def combines(self) -> bool:
        """Whether a rule is chosen, or a subclass has its own."""
        return self.options.combine != "sum" or type(self).combine is not CombiningMethod.combine

    def combine(self, lab: Lab, gradients: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
        """Combine by the chosen rule; log norms, signal, the lowest cosine and how much the rule changed the sum."""
        products = products_of(list(gradients.values()), [weights[task] for task in gradients])
        chosen = combined_weights(self.options.combine, products, lab.seed_for("combine", ""))
        norms = products.diagonal().sqrt()
        for task, norm in zip(gradients, norms.tolist()):
            lab.note(f"gradient_norm/{task}", norm)
            # Later optimiser steps of an update may train on the same samples, whose noise is the same.
            if lab.inner == 0:
                lab.note(f"signal/{task}", float(self.signal.cosine(task, gradients[task])))
        pairs = torch.triu_indices(len(gradients), len(gradients), offset=1)
        tiny = torch.finfo(norms.dtype).tiny
        cosines = products[*pairs] / (norms[pairs[0]] * norms[pairs[1]]).clamp(min=tiny)
        lab.note("cosine_lowest", float(cosines.min()))
        # |sum_i (a_i - 1) g_i| / |sum_i g_i|, from the products.
        changed, whole = (chosen - 1) @ products @ (chosen - 1), products.sum()
        lab.note("combine_change", float((changed / whole.clamp(min=tiny)).clamp(min=0).sqrt()))
        # As the sum without a rule, with other weights.
        by_rule = {task: weight * weights[task] for task, weight in zip(gradients, chosen.tolist())}
        return super().combine(lab, gradients, by_rule)

    def remarks(self, rows: list[dict[str, float]]) -> list[str]:
        """Warnings if a rule acted on gradients that are mostly noise, and if weights had no time to adapt."""
        found, rule, shares = [], self.options.combine, signal_shares(rows)
        if rule != "sum" and shares and max(shares.values()) < MOSTLY:
            told = ", ".join(f"{task} {share:.0%}" for task, share in shares.items())
            found.append(
                f"params.combine {rule} acted mostly on noise: by the cosine of successive gradients, the signal is "
                f"this share of a gradient's squared norm: {told}"
            )
        if self.allocation.too_short():
            found.append(
                f"params.allocation {self.options.allocation} never adapted the weights: it compares windows of "
                f"{WINDOW} updates, of which the run has too few"
            )
        return found
