"""The paper's claims against the records of a comparison: python -m report.claims COMPARISON.json PROBE.json

Each claim of DiffusionOPD (arXiv 2605.15055) becomes one tested quantity with a 95% interval and a verdict: "holds"
when the whole interval is on the claimed side of the line, "does not hold" when it is on the other, else "undecided".
Whatever the verdict is, it is printed.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import exit_on_error
from bench.probes.forgetting import forgetting
from bench.records import Record, model_rows, recovered
from bench.standing import against, goals
from bench.stats import Difference, Estimate, paired_difference
from report.load import comparison

SAME = 0.1
"""Relative difference below which two means count as the same."""
MATCHED = 0.9
"""Share of a teacher's gain over the base at which a student counts as matching it."""
RIVALS = ("multi_reward", "cascade", "opd_ppo", "sft")
"""Methods that the paper reports analytic OPD to beat."""


@dataclass(frozen=True)
class Verdict:
    """One claim, what was measured, and what follows."""

    claim: str
    quantity: str
    effect: Estimate | Difference
    verdict: str


def judge(claim: str, quantity: str, effect: Estimate | Difference, line: float = 0.0, above: bool = True) -> Verdict:
    """Compare an interval with a line; the claim says the effect is above (or below) it."""
    low, high = (effect.low, effect.high) if above else (-effect.high, -effect.low)
    edge = line if above else -line
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
    """Same mean, lower noise: from `bench probe` with opd_analytic first, at every point of its grid."""
    verdicts = []
    points = {tuple(p["point"]): p for p in probes if p["method"] == "opd_analytic"}
    for ppo in (p for p in probes if p["method"] == "opd_ppo"):
        twin = points.get(tuple(ppo["point"]))
        if twin is None:
            continue
        analytic, sampler, advantage = twin["all"]["snr"], ppo["sampler"], ppo["params"]["advantage"]
        where = f"{advantage}, {sampler['kernel']} eta {sampler['eta']:g}"
        noisy = ppo["all"]["snr"]
        # Ratio of two independent intervals, conservatively: worst against best.
        effect = Estimate(noisy[0] / analytic[0], noisy[1] / analytic[2], noisy[2] / analytic[1])
        claim = f"the analytic gradient is less noisy than the PPO-style one: {where}"
        quantity = "signal-to-noise ratio, PPO-style over analytic, below 1"
        verdicts.append(judge(claim, quantity, effect, 1.0, above=False))
        same = Estimate(*ppo["mean_over_first"])
        claim = f"the two gradients have the same mean: {where}"
        quantity = f"mean along the analytic one, PPO-style over analytic, 1 to within {SAME:.0%}"
        verdicts.append(judge_same(claim, quantity, same))
    return verdicts


def judge_same(claim: str, quantity: str, effect: Estimate) -> Verdict:
    """The claim says that the effect is 1: to within SAME with the whole interval, or not with all of it."""
    inside, outside = judge(claim, quantity, effect, 1 - SAME), judge(claim, quantity, effect, 1 + SAME, above=False)
    verdicts = {inside.verdict, outside.verdict}
    for verdict in ("not measured", "does not hold", "undecided"):
        if verdict in verdicts:
            return Verdict(claim, quantity, effect, verdict)
    return inside


def score_claims(groups: dict[str, list[Record]], tasks: tuple[str, ...]) -> list[Verdict]:
    """Claims about final scores, from the records of runs by method."""
    verdicts = []
    for label, records in groups.items():
        if label.partition(" ")[0] in RIVALS and "opd_analytic" in groups:
            effect = against(groups["opd_analytic"], records, tasks)
            claim = f"analytic OPD beats {label} at equal compute (teachers' cost not counted)"
            verdicts.append(judge(claim, "mean score over tasks, OPD minus rival, above 0", effect))
    if "opd_analytic" in groups:
        scale = goals(groups["opd_analytic"], tasks)
        for task in tasks:
            line = scale[task].base + MATCHED * (scale[task].teacher - scale[task].base)
            values, strata = model_rows([r.summary for r in groups["opd_analytic"]], "student", task)
            effect = paired_difference(values, np.full(values.shape, line), strata)
            claim = f"one student matches every teacher: {task}"
            verdicts.append(judge(claim, f"student minus ({MATCHED:.0%} of the teacher's gain), above 0", effect))
    if "cascade" in groups:
        order = groups["cascade"][0].params["order"] or tasks
        runs = [r.evaluations for r in groups["cascade"]]
        for i, task in enumerate(order[:-1]):
            change = forgetting(runs, task, own_stage_end=(i + 1) / len(order)).change_after_own_stage
            if change is not None:
                claim = f"cascade forgets: {task}, trained in stage {i + 1}"
                verdicts.append(judge(claim, "end minus end of its own stage, below 0", change, above=False))
    return verdicts


def sampler_claim(groups: dict[str, list[Record]]) -> list[Verdict]:
    """Deterministic and stochastic kernels are both served: each variant reaches the teachers."""
    verdicts = []
    for label, records in groups.items():
        effect = recovered([r.summary for r in records])["mean"]
        claim = f"SDE and ODE samplers are both served: {label}"
        verdicts.append(judge(claim, f"share of the teachers' mean gain, above {MATCHED:.0%}", effect, MATCHED))
    return verdicts


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path, help="comparison-*.json of bench compare; its runs lie beside it")
    parser.add_argument("probe", type=Path, nargs="?", help="--output of bench probe")
    arguments = parser.parse_args()
    groups, tasks = comparison(arguments.comparison)
    verdicts = score_claims(groups, tasks)
    if arguments.probe:
        verdicts = gradient_claims(json.loads(arguments.probe.read_text())) + verdicts
    verdicts += sampler_claim({k: v for k, v in groups.items() if k.startswith("opd_analytic")})
    table = Table(title="claims of DiffusionOPD on this comparison's backbone")
    for head in ("claim", "tested quantity", "effect [95% interval]", "verdict"):
        table.add_column(head)
    for v in verdicts:
        table.add_row(v.claim, v.quantity, str(v.effect), v.verdict)
    Console(width=160, highlight=False).print(table)


if __name__ == "__main__":
    exit_on_error(main)
