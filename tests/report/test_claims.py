"""Verdicts follow from intervals alone."""

from dataclasses import replace

import pytest

from bench.analysis.records import Record
from bench.analysis.stats import Estimate
from report.claims import chance, gradient_claims, judge, judge_same, score_claims
from report.lines import Line
from tests.analysis.test_forgetting import SEEDS
from tests.cli.test_compare import record


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
    sampler, params = {"kernel": "cps", "eta": 0.8}, {"advantage": "log_ratio", "weighting": "kl", "anchor": 0.0}
    where = {"method": method, "student": "base", "point": list(point), "sampler": sampler, "params": params}
    return where | {"states": 12, "all": {"snr": snr}, "mean_over_first": mean}


def test_gradient_claims_add_their_errors() -> None:
    probes = [
        probe("opd_analytic", [1.0, 0.5, 2.0], [1, 1, 1]),
        probe("opd_ppo", [0.1, 0.05, 0.2], [1.01, 0.95, 1.05]),
        probe("opd_ppo", [0.1, 0.05, 0.2], [1.01, 0.95, 1.05], ("sampler.eta=0.3",)),
    ]
    noise, mean = gradient_claims(probes)  # the third has no analytic twin at its point
    half = (0.75**2 + 0.075**2) ** 0.5
    assert (noise.effect.low, noise.effect.high) == pytest.approx((0.9 - half, 0.9 + half))
    assert (noise.verdict, mean.verdict) == ("holds", "holds")
    assert gradient_claims(probes[:1]) == []
    for key, value in (("weighting", "velocity"), ("anchor", 0.1)):
        other = probes[0] | {"params": probes[0]["params"] | {key: value}}
        assert [v.verdict for v in gradient_claims([other, probes[1]])] == ["not comparable"]
    unclear = [probe("opd_analytic", [0.1, -0.01, 0.2], [1, 1, 1]), probes[1]]
    assert gradient_claims(unclear)[0].verdict == "undecided"


def test_many_gradient_claims_need_more_evidence_than_one() -> None:
    pair = lambda point: [
        probe("opd_analytic", [0.4, 0.2, 0.6], [1, 1, 1], (point,)),
        probe("opd_ppo", [0.1, 0.05, 0.15], [1.01, 0.98, 1.04], (point,)),
    ]
    assert gradient_claims(pair("a"))[0].verdict == "holds"
    assert gradient_claims([p for point in "abcdefgh" for p in pair(point)])[0].verdict == "undecided"
    assert chance(Estimate(2.201, 0, 4.402), 0, 12) == pytest.approx(0.05, abs=1e-3)


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


def line(label: str, records: list[Record], training: float = 1000, teachers: float = 0) -> Line:
    method = {"method": label.partition(" ")[0]}
    return Line(label, [replace(r, summary=r.summary | method) for r in records], training, teachers)


def verdicts(lines: list[Line]) -> dict[str, str]:
    return {v.claim: v.verdict for v in score_claims(lines, ("t",))}


OPD = line("opd_analytic", [record(s, 0.5, [0.5], True) for s in range(3)], 1000, 4000)


def test_scores_that_fall_short_are_said_to() -> None:
    found = verdicts([OPD, line("multi_reward", [record(s, 0.6, [0.6], False) for s in range(3)])])
    assert found["analytic OPD beats multi_reward at equal compute (teachers' cost not counted)"] == "does not hold"
    assert found["one student matches every teacher: t"] == "does not hold"
    assert found["mean matching works with the sampler ode, eta 0"] == "does not hold"


def test_rivals_are_compared_where_their_compute_is_equal() -> None:
    worse = [record(s, 0.4, [0.4], False) for s in range(3)]
    lines = [OPD, line("cascade", worse, 1020), line("multi_reward", worse, 5100), line("sft", worse, 2000, 4000)]
    found = [claim for claim in verdicts(lines) if "beats" in claim]
    assert found == [
        "analytic OPD beats cascade at equal compute (teachers' cost not counted)",
        "analytic OPD beats multi_reward at equal compute (teachers' cost counted)",
    ]


def test_many_rivals_need_more_evidence_than_one() -> None:
    """An interval just off zero decides for one rival and, under Holm's correction, not among thirty."""
    scores = [0.38, 0.4, 0.42, 0.47]
    opd = line("opd_analytic", [record(s, 0.5, [0.5], True) for s in range(4)])
    rivals = [line(f"sft n={i}", [record(s, v, [v], True) for s, v in enumerate(scores)]) for i in range(30)]
    claim = "analytic OPD beats sft n=0 at equal compute (teachers' cost not counted)"
    assert verdicts([opd, rivals[0]])[claim] == "holds"
    assert verdicts([opd, *rivals])[claim] == "undecided"


def test_samplers_compare_only_where_all_else_is_equal() -> None:
    def served(kernel: str, lr: float) -> Line:
        runs = [record(s, 0.7, [0.7], True) for s in range(3)]
        specs = [r.spec | {"sampler": {"kernel": kernel, "eta": 0.7}, "optimizer": {"lr": lr}} for r in runs]
        return line(f"opd_analytic {kernel} {lr}", [replace(r, spec=spec) for r, spec in zip(runs, specs)])

    found = verdicts([OPD, served("cps", 1e-3), served("flow_sde", 3e-3)])
    claims = {claim: verdict for claim, verdict in found.items() if "sampler " in claim}
    assert claims == {
        "mean matching works with the sampler ode, eta 0": "does not hold",
        "mean matching works with the sampler cps, eta 0.7": "holds",
    }


@pytest.mark.parametrize(("order", "first", "verdict"), [(None, "a", "holds"), (("b", "a"), "b", "does not hold")])
def test_cascade_forgetting_follows_the_order_of_training(order, first: str, verdict: str) -> None:
    model = {task: SEEDS[0][-2 + i] for i, task in enumerate("ab")}
    summary = {"models": {"student": model, "base": model}, "cost": {"evaluations": {"training": 1}}, "teachers": {}}
    runs = [Record(summary, rows, {"params": {"order": order}}) for rows in SEEDS]
    (claim,) = score_claims([line("cascade", runs)], ("a", "b"))
    assert claim.family == "losses of cascade"
    assert claim.claim == f"cascade forgets: {first}, trained in stage 1"
    assert claim.verdict == verdict


def test_a_cascades_loss_in_the_next_stage_is_a_claim_beside_the_one_at_the_end() -> None:
    """GenEval-like: .8 at the end of its stage, .3 a stage later, .8 again at the end of all."""
    runs = []
    for e in (0.0, 0.01, 0.02):
        at = {1 / 3: 0.8 + e, 2 / 3: 0.3 - e, 1.0: 0.8}
        runs.append([
            {"share": share, "task": task, "headline": "m", "strata": [""] * 2, "rows": {"m": [value, value]}}
            for share, value in at.items() for task in "abc"
        ])  # fmt: skip
    model = {task: runs[0][-3 + i] for i, task in enumerate("abc")}
    summary = {"models": {"student": model, "base": model}, "cost": {"evaluations": {"training": 1}}, "teachers": {}}
    found = verdicts_of(
        score_claims([line("cascade", [Record(summary, r, {"params": {}}) for r in runs])], tuple("abc"))
    )
    assert found["cascade forgets: a, trained in stage 1, by the end of stage 2"] == "holds"
    assert found["cascade forgets: a, trained in stage 1"] == "undecided"


def verdicts_of(claims: list) -> dict[str, str]:
    return {v.claim: v.verdict for v in claims}


def test_primary_claims_do_not_pay_for_exploratory_ones() -> None:
    scores = [0.38, 0.4, 0.42, 0.47]
    opd = line("opd_analytic", [record(s, 0.5, [0.5], True) for s in range(4)])
    runs = [record(s, v, [v], False) for s, v in enumerate(scores)]
    joint = line("multi_reward", [replace(r, spec=r.spec | {"params": {"engine": "nft"}}) for r in runs])
    many = [line(f"sft n={i}", [record(s, v, [v], True) for s, v in enumerate(scores)]) for i in range(30)]
    found = score_claims([opd, joint, *many], ("t",))
    families = {v.claim: v.family for v in found if "beats" in v.claim}
    claim = "analytic OPD beats multi_reward at equal compute (teachers' cost not counted)"
    assert families[claim] == "primary, teachers' cost not counted"
    assert verdicts_of(found)[claim] == "holds"
    assert next(iter(families)) == claim  # primary ones come first
    assert set(families.values()) - {families[claim]} == {"exploratory, teachers' cost not counted"}


def test_the_order_of_rivals_is_compared_pair_by_pair() -> None:
    def rival(method: str, engine: str, level: float, cost: float = 1000) -> Line:
        runs = [record(s, level + 0.01 * (s % 2), [level], False) for s in range(4)]
        return line(
            f"{method} engine={engine}", [replace(r, spec=r.spec | {"params": {"engine": engine}}) for r in runs], cost
        )

    lines = [rival("cascade", "nft", 0.5), rival("multi_reward", "grpo_guard", 0.3), rival("multi_reward", "nft", 0.7)]
    found = {v.claim: v.verdict for v in score_claims(lines, ("t",)) if "order" in v.claim}
    assert found == {
        "the paper's order of rivals: cascade engine=nft above multi_reward engine=grpo_guard": "holds",
        "the paper's order of rivals: cascade engine=nft above multi_reward engine=nft": "does not hold",
        "the paper's order of rivals: multi_reward engine=grpo_guard above multi_reward engine=nft": "does not hold",
    }
    apart = [lines[0], rival("multi_reward", "nft", 0.7, 5000)]
    assert not [v for v in score_claims(apart, ("t",)) if "order" in v.claim]  # they did not spend the same
