"""Verdicts follow from intervals alone."""

import pytest

from bench.records import Record
from bench.stats import Estimate
from report.claims import gradient_claims, judge, judge_same, score_claims
from tests.test_compare import record
from tests.test_forgetting import SEEDS


@pytest.mark.parametrize(
    ("interval", "above", "verdict"),
    [
        ((0.1, 0.3), True, "holds"),
        ((-0.3, -0.1), True, "does not hold"),
        ((-0.1, 0.1), True, "undecided"),
        ((0.1, 0.3), False, "does not hold"),
        ((-0.3, -0.1), False, "holds"),
        ((float("nan"), float("nan")), True, "not measured"),
    ],
)
def test_verdict(interval, above: bool, verdict: str) -> None:
    assert judge("c", "q", Estimate(sum(interval) / 2, *interval), above=above).verdict == verdict


def probe(method: str, snr: list[float], mean: list[float], point: tuple[str, ...] = ()) -> dict:
    sampler, params = {"kernel": "cps", "eta": 0.8}, {"advantage": "log_ratio"}
    where = {"method": method, "point": list(point), "sampler": sampler, "params": params}
    return where | {"all": {"snr": snr}, "mean_over_first": mean}


def test_gradient_claim_takes_the_conservative_ratio() -> None:
    probes = [
        probe("opd_analytic", [1.0, 0.5, 2.0], [1, 1, 1]),
        probe("opd_ppo", [0.1, 0.05, 0.2], [1.01, 0.95, 1.05]),
        probe("opd_ppo", [0.1, 0.05, 0.2], [1.01, 0.95, 1.05], ("sampler.eta=0.3",)),
    ]
    noise, mean = gradient_claims(probes)  # the third has no analytic twin at its point
    assert (noise.effect.low, noise.effect.high) == (0.025, 0.4)
    assert (noise.verdict, mean.verdict) == ("holds", "holds")
    assert gradient_claims(probes[:1]) == []


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.95, 1.05), "holds"),
        ((0.8, 1.02), "undecided"),
        ((0.5, 0.8), "does not hold"),
        ((1.2, 1.5), "does not hold"),
        ((float("nan"), float("nan")), "not measured"),
    ],
)
def test_same_mean(interval, verdict: str) -> None:
    assert judge_same("c", "q", Estimate(sum(interval) / 2, *interval)).verdict == verdict


def test_scores_that_fall_short_are_said_to() -> None:
    groups = {
        "opd_analytic": [record(s, 0.5, [0.5], True) for s in range(3)],
        "multi_reward": [record(s, 0.6, [0.6], False) for s in range(3)],
    }
    verdicts = {v.claim.split(":")[0]: v.verdict for v in score_claims(groups, ("t",))}
    assert verdicts["analytic OPD beats multi_reward at equal compute (teachers' cost not counted)"] == "does not hold"
    assert verdicts["one student matches every teacher"] == "does not hold"


@pytest.mark.parametrize(("order", "first", "verdict"), [(None, "a", "holds"), (("b", "a"), "b", "does not hold")])
def test_cascade_forgetting_follows_the_order_of_training(order, first: str, verdict: str) -> None:
    model = {task: SEEDS[0][-2 + i] for i, task in enumerate("ab")}
    summary = {"models": {"student": model, "base": model}, "cost": {"evaluations": {"training": 1}}, "teachers": {}}
    groups = {"cascade": [Record(summary, rows, {"order": order}) for rows in SEEDS]}
    (claim,) = score_claims(groups, ("a", "b"))
    assert claim.claim == f"cascade forgets: {first}, trained in stage 1"
    assert claim.verdict == verdict
