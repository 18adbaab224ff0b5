"""Tests of the paper's claims on the records.

Each claim of DiffusionOPD (arXiv 2605.15055) becomes one tested quantity with a 95% interval and a verdict: "holds"
if the whole interval is on the claimed side of the line, "does not hold" if it is on the other side, and "undecided"
otherwise. If Holm's correction within a family disagrees, the verdict is "undecided" too. Families: the paper's
comparisons (PRIMARY of
bench/analysis/comparison.py; the teachers' cost not counted, and counted), the other rivals likewise, a cascade's
losses, and the gradients of a probe's output. Every verdict is printed, whatever it is.
"""

import math
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from bench.analysis.comparison import MARGIN, PRIMARY_FAMILY, against, family
from bench.analysis.records import model_rows, recovered, shows_teachers
from bench.analysis.stats import Difference, Estimate, holm, holm_within, paired_difference
from report.lines import Line, near
from report.table import plain

SAME = 0.1
"""Largest relative difference at which two means count as equal."""
MATCHED = 1 - MARGIN
"""Fraction of a teacher's gain over the base at which a student counts as matching the teacher."""
ALPHA = 0.05
RIVALS = ("multi_reward", "cascade", "opd_ppo", "sft")
"""Methods that analytic OPD outperforms according to the paper."""
ORDER = (("cascade", "nft"), ("multi_reward", "grpo_guard"), ("multi_reward", "nft"))
"""The paper's order of the RL rivals by its average of all metrics (Table 1), best first: method and engine."""


@dataclass(frozen=True)
class Verdict:
    """One claim, the tested quantity, its effect, and the verdict."""

    claim: str
    quantity: str
    effect: Estimate | Difference
    verdict: str
    family: str = ""
    """Family of Holm's correction; empty for a claim that is tested individually."""


def judge(
    claim: str,
    quantity: str,
    effect: Estimate | Difference,
    line: float = 0.0,
    above: bool = True,
) -> Verdict:
    """Compare an interval with a line that the claimed effect is above (or below)."""
    low, high, edge = effect.low, effect.high, line
    if not above:
        low, high, edge = -effect.high, -effect.low, -line
    if np.isnan(low) or np.isnan(high):
        verdict = "not measured"
    elif low > edge:
        verdict = "holds"
    elif high < edge:
        verdict = "does not hold"
    else:
        verdict = "undecided"
    return Verdict(claim, quantity, effect, verdict)


def gradient_claims(probes: list[dict]) -> list[Verdict]:
    """Equal mean and lower noise, at every grid point of a `bench probe` output that begins with opd_analytic."""
    verdicts, chances = [], []
    points = {tuple(p["point"]): p for p in probes if p["method"] == "opd_analytic"}
    for ppo in (p for p in probes if p["method"] == "opd_ppo"):
        twin = points.get(tuple(ppo["point"]))
        if twin is None:
            continue
        sampler, advantage = ppo["sampler"], ppo["params"].get("advantage")
        where = f"{advantage}, {sampler['kernel']} eta {sampler['eta']:g}"
        analytic, noisy = twin["all"]["snr"], ppo["all"]["snr"]
        if not same_objective(twin["params"], ppo["params"]):
            needs = "requires weighting=kl in opd_analytic and otherwise equal params"
            claim = f"gradients of the same objective: {where}"
            verdicts.append(Verdict(claim, needs, Estimate.unknown(), "not comparable"))
            # NaN keeps verdicts and p-values aligned, and Holm's correction does not count it.
            chances.append(float("nan"))
            continue
        # A difference, because a ratio is meaningless where the signal cannot be distinguished from zero.
        value = analytic[0] - noisy[0]
        # Half-widths add in quadrature, as for independent estimates.
        halves = [(high - low) / 2 for _, low, high in (analytic, noisy)]
        half = math.hypot(*halves)
        effect = Estimate(value, value - half, value + half)
        claim = f"the analytic gradient has a higher signal-to-noise ratio than the PPO-style one: {where}"
        quantity = f"signal-to-noise ratio, analytic ({analytic[0]:.3g}) minus PPO-style ({noisy[0]:.2g}), above 0"
        verdicts.append(judge(claim, quantity, effect))
        same = Estimate(*ppo["mean_over_first"])
        claim = f"both gradients have the same mean along the analytic one: {where}"
        quantity = f"mean along the analytic gradient, PPO-style over analytic, within {SAME:.0%} of 1"
        verdicts.append(judge_same(claim, quantity, same))
        states = min(twin["states"], ppo["states"])
        # The interval must exclude both limits, so the larger p-value counts.
        equal = max(chance(same, 1 - SAME, states), chance(same, 1 + SAME, states))
        chances += [chance(effect, 0, states), equal]
    named = [replace(verdict, family="gradients of one output") for verdict in verdicts]
    return [corrected(verdict, p) for verdict, p in zip(named, holm(chances))]


def chance(effect: Estimate, line: float, states: int) -> float:
    """Two-sided p-value of the true effect being at the line, from a Student's t interval over states."""
    from scipy.stats import t

    error = (effect.high - effect.low) / 2 / t.ppf(0.975, states - 1)
    if not error > 0:
        return float("nan")
    return float(2 * t.sf(abs(effect.value - line) / error, states - 1))


def corrected(verdict: Verdict, p: float) -> Verdict:
    """The verdict if the Holm-adjusted p-value agrees, otherwise "undecided"."""
    if np.isnan(p):
        return verdict
    decided = p < ALPHA or verdict.verdict == "not measured"
    return replace(
        verdict,
        quantity=f"{verdict.quantity}; Holm-adjusted p {plain(p, 'p')}",
        verdict=verdict.verdict if decided else "undecided",
    )


def families_corrected(verdicts: list[Verdict], chances: list[float]) -> list[Verdict]:
    """Verdicts about runs, corrected within their families; a single seed never decides a claim."""
    adjusted = holm_within(chances, [verdict.family for verdict in verdicts])
    # p is NaN for a single seed; its interval is over prompts only and must not decide a claim about a method.
    return [_of_one_seed(verdict) if np.isnan(p) else corrected(verdict, p) for verdict, p in zip(verdicts, adjusted)]


def same_objective(analytic: dict, ppo: dict) -> bool:
    """Whether the expected gradients of two methods are comparable: KL weighting, and equal settings otherwise."""
    shared = analytic.keys() & ppo.keys()
    equal = all(analytic[key] == ppo[key] for key in shared)
    return analytic.get("weighting") == "kl" and equal


def judge_same(claim: str, quantity: str, effect: Estimate) -> Verdict:
    """Judge the claim that the effect is 1: it holds if the whole interval is within SAME of 1."""
    inside = judge(claim, quantity, effect, 1 - SAME)
    outside = judge(claim, quantity, effect, 1 + SAME, above=False)
    verdicts = {inside.verdict, outside.verdict}
    # The weaker verdict wins: both sides must hold for the claim to hold.
    for verdict in ("not measured", "does not hold", "undecided"):
        if verdict in verdicts:
            return Verdict(claim, quantity, effect, verdict)
    return inside


def rival_claims(opd: Line, lines: list[Line], tasks: tuple[str, ...]) -> list[Verdict]:
    """OPD against every rival with equal cost, with or without its teachers' cost; primary comparisons first."""
    verdicts, chances = [], []
    name = "analytic OPD" if opd.label == opd.method else f"analytic OPD ({opd.label})"
    for line in lines:
        if line.method not in RIVALS:
            continue
        own = near(line.training_nfe, opd.training_nfe)
        if not own and not near(line.total_nfe, opd.total_nfe):
            continue
        counted = "teachers' cost not counted" if own else "teachers' cost counted"
        claim = f"{name} beats {line.label} at equal compute ({counted})"
        effect = against(opd.records, line.records, tasks)
        verdict = judge(claim, "mean score over tasks, OPD minus rival, above 0", effect)
        verdicts.append(replace(verdict, family=f"{family(line.records, opd.records)}, {counted}"))
        chances.append(effect.p)
    return sorted(families_corrected(verdicts, chances), key=lambda v: not v.family.startswith(PRIMARY_FAMILY))


def order_claims(lines: list[Line], tasks: tuple[str, ...]) -> list[Verdict]:
    """The RL rivals are ordered as in the paper, for each pair with equal cost."""
    named = [[x for x in lines if (x.method, _engine(x)) == wanted] for wanted in ORDER]
    verdicts, chances = [], []
    pairs = [pair for groups in combinations(named, 2) for pair in product(*groups)]
    for above, below in pairs:
        if near(above.training_nfe, below.training_nfe):
            effect = against(above.records, below.records, tasks)
            claim = f"the paper's order of rivals: {above.label} above {below.label}"
            verdict = judge(claim, "difference of mean scores over tasks, above 0", effect)
            verdicts.append(replace(verdict, family="order of rivals"))
            chances.append(effect.p)
    return families_corrected(verdicts, chances)


def _engine(line: Line) -> str | None:
    """The RL algorithm of a line, for methods that have several."""
    return line.records[0].spec.get("params", {}).get("engine")


def match_claims(opd: Line, tasks: tuple[str, ...]) -> list[Verdict]:
    """The student recovers at least MATCHED of each teacher's gain on its task."""
    verdicts, summaries = [], [r.summary for r in opd.records]
    if not all(map(shows_teachers, summaries)):
        return []
    for task in tasks:
        values, strata = model_rows(summaries, "student", task)
        base, _ = model_rows(summaries, "base", task)
        teacher, _ = model_rows(summaries, f"teacher {task}", task)
        # A difference from a target instead of a ratio of gains: the teacher's gain may be near zero.
        target = base + MATCHED * (teacher - base)
        effect = paired_difference(values, target, strata)
        claim = f"one student matches every teacher: {task}"
        quantity = f"student minus (base plus {MATCHED:.0%} of the teacher's gain), above 0"
        verdicts.append(_of_seeds(judge(claim, quantity, effect), opd))
    return verdicts


def _of_seeds(verdict: Verdict, line: Line) -> Verdict:
    """The verdict, or "undecided" if the line has a single seed."""
    return verdict if len(line.records) > 1 else _of_one_seed(verdict)


def _of_one_seed(verdict: Verdict) -> Verdict:
    return replace(verdict, verdict="undecided", quantity=f"{verdict.quantity}; one seed is not enough")


def cascade_claims(cascade: Line) -> list[Verdict]:
    """Scores of earlier tasks drop while later ones are trained: by the end of the next stage, and at the very end."""
    verdicts, chances = [], []
    for stage, task in enumerate(cascade.stage_ends, 1):
        found = cascade.forgetting(task)
        claim = f"{cascade.label} forgets: {task}, trained in stage {stage}"
        later = f"end of stage {stage + 1}"
        for said, when, change in (
            (f"{claim}, by the {later}", later, found.change_in_next_stage),
            (claim, "end", found.change_after_own_stage),
        ):
            if change is not None:
                verdict = judge(said, f"{when} minus end of its own stage, below 0", change, above=False)
                verdicts.append(replace(verdict, family=f"losses of {cascade.label}"))
                chances.append(change.p if len(cascade.records) > 1 else float("nan"))
    return families_corrected(verdicts, chances)


def sampler_claims(opd: Line, lines: list[Line]) -> list[Verdict]:
    """OPD reaches the teachers with deterministic and stochastic kernels, all else being equal."""
    verdicts, asked = [], _but_kernel(opd)
    for line in lines:
        if line.method != opd.method or _but_kernel(line) != asked:
            continue
        sampler = line.records[0].spec["sampler"]
        effect = recovered([r.summary for r in line.records]).get("mean")
        if effect is None:
            continue
        claim = f"mean matching works with the sampler {sampler['kernel']}, eta {sampler['eta']:g}"
        quantity = f"mean gain recovered, above {MATCHED:.0%}"
        verdicts.append(_of_seeds(judge(claim, quantity, effect, MATCHED), line))
    return verdicts


def _but_kernel(line: Line) -> dict:
    """The line's settings apart from its sampler's noise and from settings that may differ between its runs."""
    spec = line.records[0].spec
    noise = ("kernel", "eta")
    sampler = {key: value for key, value in spec["sampler"].items() if key not in noise}
    # Students with all weights have no settings of an adapter.
    same = {key: spec.get(key) for key in ("tasks", "optimizer", "lora", "full_finetuning", "ema", "params")}
    # Older records call the budget's NFE "evaluations"; both must compare as equal.
    budget = dict(spec["budget"])
    if "evaluations" in budget:
        budget["nfe"] = budget.pop("evaluations")
    return same | {"budget": budget} | sampler


def score_claims(lines: list[Line], tasks: tuple[str, ...]) -> list[Verdict]:
    """Verdicts on all claims about final scores, from the lines on one backbone and one set of tasks."""
    verdicts = []
    mine = [line for line in lines if line.method == "opd_analytic"]
    # The paper's claims are about its recipe, whose label has no settings.
    recipe = [line for line in mine if line.label == "opd_analytic"]
    opd = next(iter(recipe or mine), None)
    if opd:
        verdicts += rival_claims(opd, lines, tasks) + match_claims(opd, tasks)
    verdicts += order_claims(lines, tasks)
    for line in lines:
        verdicts += cascade_claims(line)
    return verdicts + (sampler_claims(opd, lines) if opd else [])
