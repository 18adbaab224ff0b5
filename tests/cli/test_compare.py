"""`bench compare`: axes, members, failures, and one small comparison from end to end."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench.analysis.comparison import Goal, standings
from bench.analysis.fronts import fronts
from bench.analysis.records import Record
from bench.cli.compare import as_json, print_fronts, target_text
from bench.cli.comparison_plan import EQUAL, beyond_budget, default_budget, settle
from bench.cli.probe_plan import probe_specs
from bench.config.grid import method_names, overrides_of, parse_axis, recipes, variants
from bench.config.resolve import resolve
from bench.errors import UsageError
from bench.prediction.cost import run_nfe
from report import lines as report_lines
from report.tables import cosines
from tests.commands import bench

pytestmark = pytest.mark.usefixtures("few_prompts")


@pytest.fixture(scope="module")
def spec():
    return resolve("opd_analytic", ["ocr"])


def test_short_keys_are_found(spec) -> None:
    assert parse_axis("eta=0,0.7", spec) == ("sampler.eta", ["0", "0.7"])
    assert parse_axis("kernel=cps", spec) == ("sampler.kernel", ["cps"])
    assert parse_axis("optimizer.lr=1e-3,3e-4", spec)[0] == "optimizer.lr"
    assert parse_axis("steps=5", spec)[0] == "sampler.steps"


@pytest.mark.parametrize("axis", ["eta", "eta=", "etta=1", "eta=0,0"])
def test_bad_axes_are_refused(spec, axis: str) -> None:
    with pytest.raises(UsageError):
        parse_axis(axis, spec)


def test_lists_are_values_of_an_axis(spec) -> None:
    key, values = parse_axis("evaluation.points=[0.5, 1.0],[1.0]", spec)
    assert (key, values) == ("evaluation.points", ["[0.5, 1.0]", "[1.0]"])
    first, second = variants([f"{key}={','.join(values)}"], {"opd_analytic": spec})
    assert settle(first, ["ocr"], 0, "micro", 900, []).evaluation.points == (0.5, 1.0)
    assert settle(second, ["ocr"], 0, "micro", 900, []).evaluation.points == (1.0,)


def test_what_is_wrong_with_an_axis_is_said_of_the_axis(spec) -> None:
    with pytest.raises(UsageError, match=r"^--grid 'evaluation\.points=\[1'"):
        parse_axis("evaluation.points=[1", spec)
    with pytest.raises(UsageError) as refused:
        parse_axis("methd=1", spec)
    known = str(refused.value).partition("known: ")[2].split(", ")
    assert len(known) == len(set(known))


def test_settings_that_records_omit_are_axes() -> None:
    spec = resolve("opd_analytic", ["ocr", "geneval"])
    assert parse_axis("combine=sum,pcgrad", spec) == ("params.combine", ["sum", "pcgrad"])
    assert parse_axis("params.weights.ocr=1,3", spec) == ("params.weights.ocr", ["1", "3"])
    with pytest.raises(UsageError, match=r"did you mean 'params\.weights'"):
        parse_axis("params.weight.ocr=1,3", spec)


def test_methods_that_need_more_than_tasks_are_not_in_all() -> None:
    """Nor are their settings asked for when a grid's keys are looked up."""
    named = method_names(["all"], ["ocr", "geneval"])
    assert {"opd_analytic", "multi_reward", "merge"} <= set(named)
    assert not set(named) & {"flow_matching", "offline_dpo", "draft_k", "refl", "single_task"}
    found = recipes(["flow_matching", "draft_k"], ["ocr"], "micro")
    (line,) = variants(["flow_matching.batch=4"], {"flow_matching": found["flow_matching"]}, [])
    assert line.overrides == ("params.batch=4",)
    for method in found:
        with pytest.raises(UsageError, match=r"has no images|has no gradient"):
            resolve(method, ["ocr"])


def test_scores_of_other_scorers_are_no_axis(spec) -> None:
    with pytest.raises(UsageError, match="scores of different scorers cannot be compared"):
        parse_axis("scorers.ocr.url=http://a,http://b", resolve("opd_analytic", ["ocr"]))


def test_grid_is_the_product(spec) -> None:
    lines = variants(["eta=0,0.3", "kernel=flow_sde,cps"], {"opd_analytic": spec})
    assert [v.label for v in lines] == [
        "opd_analytic eta=0,kernel=flow_sde", "opd_analytic eta=0,kernel=cps",
        "opd_analytic eta=0.3,kernel=flow_sde", "opd_analytic eta=0.3,kernel=cps",
    ]  # fmt: skip
    assert lines[-1].overrides == ("sampler.eta=0.3", "sampler.kernel=cps")


def test_axis_of_one_method_among_several(spec) -> None:
    specs = {"opd_analytic": spec, "multi_reward": resolve("multi_reward", ["ocr"])}
    lines = variants(["multi_reward.engine=nft,grpo", "rank=4,8"], specs)
    assert [v.label for v in lines] == [
        "opd_analytic lora.rank=4", "opd_analytic lora.rank=8",
        "multi_reward lora.rank=4,engine=nft", "multi_reward lora.rank=4,engine=grpo",
        "multi_reward lora.rank=8,engine=nft", "multi_reward lora.rank=8,engine=grpo",
    ]  # fmt: skip
    assert lines[-1].common == ("lora.rank=8",) == lines[1].common
    with pytest.raises(UsageError, match="not among"):
        variants(["sft.levels=1,2"], specs)


def test_settings_of_one_method_among_several() -> None:
    methods, given = ["sft", "merge"], ["optimizer.lr=1", "sft.params.levels=2", "merge.lora.rank=4"]
    assert overrides_of("sft", methods, given) == ["optimizer.lr=1", "params.levels=2"]
    assert overrides_of("merge", methods, given) == ["optimizer.lr=1", "lora.rank=4"]


def test_settings_of_teachers_are_for_methods_that_have_them() -> None:
    methods, given = ["opd_analytic", "multi_reward"], ["teachers.ocr=train", "teacher_guidance={ocr: 2}"]
    assert overrides_of("opd_analytic", methods, given) == given
    assert overrides_of("multi_reward", methods, given) == []
    with pytest.raises(UsageError, match="takes no teachers"):
        resolve("multi_reward", ["ocr"], overrides=overrides_of("multi_reward", ["multi_reward"], given))


CONTRADICTIONS = {
    "an axis twice": (["--grid", "steps=3", "--grid", "steps=5"], ["--grid steps=3", "--grid steps=5"]),
    "an axis in two spellings": (["--grid", "steps=3", "sampler.steps=5"], ["steps=3", "sampler.steps=5"]),
    "an axis of one method and of all": (["--grid", "opd_analytic.steps=3", "steps=5"], ["opd_analytic.steps=3"]),
    "an axis and a setting": (["--grid", "steps=3,5", "--set", "sampler.steps=3"], ["--set sampler.steps=3"]),
    "an axis and a section": (["--grid", "steps=3,5", "--set", "sampler={steps: 3}"], ["sampler.steps"]),
    "an axis of one method and a setting": (
        ["--grid", "opd_analytic.lr=1e-3,1e-4", "--set", "optimizer.lr=1e-3"], ["opd_analytic.lr=1e-3,1e-4"],
    ),
    "a setting twice": (["--set", "optimizer.lr=1", "--set", "optimizer.lr=2"], ["lr=1 and --set optimizer.lr=2"]),
    "a setting and its section": (["--set", "sampler.steps=3", "--set", "sampler={steps: 5}"], ["sampler.steps"]),
    "a setting of one method and of all": (
        ["--set", "optimizer.lr=1", "--set", "opd_analytic.optimizer.lr=2"], ["opd_analytic.optimizer.lr=2"],
    ),
    "one value in two spellings": (["--grid", "lr=1e-3,0.001"], ["lr=1e-3'", "lr=0.001'", "same runs"]),
    "one run on two portions": (["--grid", "evaluation.batch=8,16"], ["same runs"]),
    "two splits": (["--grid", "evaluation.split=test,validation"], ["validation", "the same evaluation.split"]),
    "two splits of two methods": (["--set", "merge.evaluation.split=validation"], ["'merge'", "the same evaluation.split"]),
    "a budget in settings": (["--set", "budget.updates=3"], ["--budget"]),
    "a budget as an axis": (["--grid", "budget.nfe=1000,2000"], ["--budget"]),
    "a method twice": (["--methods", "merge,sft,merge"], ["a method is named twice"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_settings_that_contradict_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    given, expected = CONTRADICTIONS[name]
    methods = [] if "--methods" in given else ["--methods", "opd_analytic,merge"]
    done = bench(["compare", *methods, "--tasks", "ocr", *given], tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert all(text in done.stderr for text in expected), done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "sets",
    [
        ["optimizer.lr=1e-3", "optimizer.lr=1e-4"],
        ["budget.updates=3", "budget.nfe=300"],
        ["params.trajectories=4", "params={trajectories: 8}"],
    ],
)
def test_a_setting_given_twice_is_refused_or_told(sets: list[str], tmp_path: Path) -> None:
    """One run may be given a command that is there and more: then the last one holds, and that is said."""
    given = [word for text in sets for word in ("--set", text)]
    done = bench(["probe", "--methods", "opd_analytic", "--tasks", "ocr", *given], tmp_path)
    assert done.returncode == 2 and "contradict each other" in done.stderr
    done = bench(["run", "--method", "opd_analytic", "--tasks", "ocr", "--dry-run", *given], tmp_path)
    assert done.returncode == 0
    assert done.stderr == f"note: --set {sets[1]} overrides --set {sets[0]}\n"
    assert not (tmp_path / "results").exists()


def test_what_a_scorer_is_told_twice_is_refused(tmp_path: Path) -> None:
    given = ["--set", "scorers.ocr.engine=a", "--set", "scorers.ocr.engine=b"]
    done = bench(["score", "ocr", ".", *given], tmp_path)
    assert done.returncode == 2 and "contradict each other" in done.stderr


def test_a_setting_given_twice_with_one_value_is_no_contradiction() -> None:
    given = ["optimizer.lr=1e-3", "opd_analytic.optimizer.lr=0.001"]
    assert len(overrides_of("opd_analytic", ["opd_analytic"], given)) == 2


def test_points_of_the_users_own_take_the_place_of_the_comparisons(spec) -> None:
    line = variants([], {"opd_analytic": spec})[0]
    member = settle(line, ["ocr"], 0, "micro", 5000, ["evaluation.points=[0.5]"])
    assert member.evaluation.points == (0.5,)


def test_budgets_are_equal_as_in_the_report() -> None:
    assert report_lines.EQUAL == EQUAL
    spent = {"at": 1000.0, "near": 1050.0, "beyond": 1051.0, "idle": 0.0}
    assert beyond_budget(1000, spent) == {"beyond": 1051.0}
    assert [report_lines.near(count, 1000) for count in (1049.0, 1051.0)] == [True, False]


def test_the_default_budget_is_that_of_the_recipe_of_distillation() -> None:
    """Recipes count updates, as on micro, or NFE, as in the study's worlds (PROTOCOL.md)."""
    tasks = ["geneval", "ocr", "pickscore"]
    recipe = resolve("opd_analytic", tasks, backbone="micro")
    assert recipe.budget.updates
    assert default_budget(tasks, "micro") == run_nfe(recipe)
    assert default_budget(tasks, "study-2") == 153_600


def test_what_is_spent_beyond_the_budget_is_said_before_and_after(tmp_path: Path) -> None:
    words = ["compare", "--methods", "opd_analytic,merge", "--tasks", "ocr", "--seeds", "0", "--executor", "inline"]
    words += ["--set", "evaluation.steps=1", "--set", "evaluation.split=validation", "--set", "evaluation.points=[]"]
    done = bench([*words, "--budget", "300"], tmp_path)
    assert done.returncode == 0, done.stderr
    told, _, after = done.stderr.partition("\n")
    assert told.startswith("note: opd_analytic will spend 384 training NFE of --budget 300")
    assert "opd_analytic, seed 0: done" in after
    assert "budget 300 training NFE, spent 384; more than 5% over budget" in " ".join(done.stdout.split())
    done = bench([*words, "--budget", "384"], tmp_path)
    assert "will spend" not in done.stderr
    assert "384 training NFE each" in done.stdout


def test_a_member_has_its_line_s_settings_and_its_seed(spec) -> None:
    line = variants(["eta=0.3", "kernel=cps"], {"opd_analytic": spec})[0]
    member = settle(line, ["ocr"], 2, "micro", 5000, [])
    assert member.budget.nfe == 5000
    assert (member.sampler.kernel, member.sampler.eta, member.seed) == ("cps", 0.3, 2)
    assert len(member.evaluation.points) == 6


def record(seed: int, score: float, curve: list[float], teachers: bool) -> Record:
    model = lambda value: {"t": {"headline": "m", "strata": [""] * 4, "rows": {"m": [value] * 4}}}
    models = {"student": model(score), "base": model(0.2)} | ({"teacher t": model(0.7)} if teachers else {})
    cost = {"evaluations": {"training": 1000}}
    rows = [
        {"share": (i + 1) / len(curve), "task": "t", "headline": "m", "strata": [""], "rows": {"m": [v]}}
        for i, v in enumerate(curve)
    ]
    summary = {"seed": seed, "models": models, "cost": cost, "teachers": {"t": {}} if teachers else {}}
    sampler, spec = {"kernel": "ode", "eta": 0.0}, {"tasks": ["t"], "budget": {}, "lora": {}, "ema": {}}
    spec["evaluation"] = {"split": "test", "steps": 10, "guidance": 1.0}
    return Record(summary, rows, spec | {"sampler": sampler, "optimizer": {"lr": 1e-3}, "params": {"order": None}})


def test_standings_by_hand() -> None:
    groups = {
        "opd": [record(s, 0.7, [0.3, 0.66, 0.7, 0.7], True) for s in range(3)],
        "rl": [record(s, 0.45, [0.3, 0.4, 0.45, 0.45], False) for s in range(3)],
    }
    opd, rl = standings(groups, ("t",), "opd", {"t": 5000.0})
    assert opd.gain.value == pytest.approx(1)
    assert rl.gain.value == pytest.approx(0.5)
    assert rl.gain_iqm.value == pytest.approx(0.5)
    assert opd.time_to_target == 500  # 0.66 is 94% of 0.7, at half of 1000 evaluations
    assert np.isinf(rl.time_to_target)
    assert (opd.teacher_nfe, rl.teacher_nfe) == (5000, 0)
    assert rl.above_reference.value == 0
    assert rl.against_reference.value == pytest.approx(-0.25)
    assert rl.against_reference.p <= 0.001
    alone = standings({label: rs[:1] for label, rs in groups.items()}, ("t",), "opd", {"t": 5000.0})
    assert np.isnan(alone[1].against_reference.p)  # one run of each says nothing of the methods


def test_rows_of_different_prompts_are_not_paired() -> None:
    def shown(of: Record, **of_rows) -> Record:
        rows = {model: {"t": tasks["t"] | of_rows} for model, tasks in of.summary["models"].items()}
        return replace(of, summary=of.summary | {"models": rows})

    ours, theirs = ([record(s, score, [score], True) for s in range(2)] for score in (0.7, 0.4))
    ours = [shown(r, prompts=[0, 0, 1, 1]) for r in ours]
    for change in ({"strata": ["a"] * 4}, {"prompts": [0, 1, 2, 3]}, {"strata": [""] * 2, "rows": {"m": [0.4] * 2}}):
        for others in ([shown(r, **change) for r in theirs], [theirs[0], shown(theirs[1], **change)]):
            if others[0] is theirs[0] and "prompts" in change:
                continue  # nothing is known of the prompts of the first
            with pytest.raises(UsageError, match="different prompts of task 't'"):
                standings({"opd": ours, "rl": others}, ("t",), "opd", {})
    assert standings({"opd": ours, "rl": theirs}, ("t",), "opd", {"t": 1.0})[1].against_reference.value < 0


def named(records: list[Record], method: str, **params) -> list[Record]:
    return [replace(r, summary=r.summary | {"method": method}, spec=r.spec | {"params": params}) for r in records]


def test_the_papers_comparisons_are_a_family_whatever_else_a_table_holds() -> None:
    scores = {"cascade": [0.5, 0.52, 0.58], "multi_reward": [0.6, 0.65, 0.66]}
    groups = {"opd": named([record(s, 0.7, [0.7], True) for s in range(3)], "opd_analytic")}
    for method, values in scores.items():
        runs = [record(s, value, [value], False) for s, value in enumerate(values)]
        groups[method] = named(runs, method, engine="nft")
    before = {s.label: s for s in standings(groups, ("t",), "opd", {"t": 1.0})}
    noise = [record(s, 0.7 + 0.1 * (s - 1), [0.7], True) for s in range(3)]
    more = groups | {f"sft {k}": named(noise, "sft") for k in range(20)}
    more["multi_reward engine=grpo"] = named(noise, "multi_reward", engine="grpo")
    after = {s.label: s for s in standings(more, ("t",), "opd", {"t": 1.0})}
    for label in scores:
        assert after[label].family == "primary"
        assert after[label].against_reference.p == before[label].against_reference.p
    assert after["sft 3"].family == after["multi_reward engine=grpo"].family == "exploratory"
    assert before["opd"].family == ""
    turned = standings(more, ("t",), "sft 0", {"t": 1.0})
    assert {s.family for s in turned} == {"", "exploratory"}  # they are comparisons with analytic OPD


def test_never_of_the_mean_says_how_many_seeds_get_there() -> None:
    curves = [[0.3, 0.66, 0.3], [0.3, 0.3, 0.64], [0.3, 0.3, 0.3]]
    groups = {
        "opd": [record(s, 0.7, [0.3, 0.7, 0.7], True) for s in range(3)],
        "rl": [record(s, curve[-1], curve, False) for s, curve in enumerate(curves)],
    }
    opd, rl = standings(groups, ("t",), "opd", {"t": 1.0})
    assert (opd.seeds_at_target, rl.seeds_at_target) == (3, 2)
    assert np.isinf(rl.time_to_target)
    assert target_text(rl) == "never (2 of 3)"
    assert target_text(opd) == "1k (3 of 3)"
    (untaught,) = standings({"rl": groups["rl"]}, ("t",), "rl", {})
    assert target_text(untaught) == "-"


def test_what_a_headline_hides_stands_beside_it() -> None:
    def seen(seed: int, strict: float) -> Record:
        found = record(seed, 0.6, [0.6], True)
        for model in found.summary["models"].values():
            model["t"]["rows"]["strict"] = [strict] * 4
            model["u"] = {"headline": "m", "strata": [""] * 4, "rows": {"m": [0.5] * 4}}
        found.summary["models"]["student"]["u"]["rows"]["m"] = [0.3] * 4
        found.summary["models"]["teacher u"] = found.summary["models"]["teacher t"] | {
            "u": {"headline": "m", "strata": [""] * 4, "rows": {"m": [0.9] * 4}}
        }
        return found

    (line,) = standings({"opd": [seen(0, 0.25), seen(1, 0.75)]}, ("t", "u"), "opd", {})
    assert line.beside["t: strict"].value == pytest.approx(0.5)
    assert set(line.beside) == {"t: strict"}
    assert line.worst_task == "u"
    assert line.worst.value == pytest.approx((0.3 - 0.5) / (0.9 - 0.5))


def test_equivalence_has_a_margin_of_a_tenth_of_the_gain() -> None:
    near = [record(s, 0.7 + value, [0.7], True) for s, value in enumerate((0.001, -0.002, 0.001, 0.0))]
    wide = [record(s, 0.7 + value, [0.7], True) for s, value in enumerate((0.2, -0.2, 0.1, -0.1))]
    opd = [record(s, 0.7, [0.7], True) for s in range(4)]
    _, near_, wide_, same = standings({"opd": opd, "near": near, "wide": wide, "same": opd[:]}, ("t",), "opd", {})
    assert near_.margin == pytest.approx(0.05)
    assert near_.p_equivalent < 0.05 < wide_.p_equivalent
    assert wide_.against_reference.p > 0.05
    assert np.isnan(same.p_equivalent)


def test_what_is_the_same_counts_once_and_is_no_test() -> None:
    opd = [record(s, 0.7, [0.7], True) for s in range(5)]
    merge = [record(s, 0.5, [0.5], False) for s in range(5)]
    same = [record(s, 0.7, [0.7], True) for s in range(5)]
    lines = standings({"opd": opd, "merge": merge, "same": same}, ("t",), "opd", {"t": 1.0})
    once = standings({"opd": opd, "merge": merge[:1], "same": same[:1]}, ("t",), "opd", {"t": 1.0})
    assert [line.above_reference for line in lines] == [line.above_reference for line in once]
    assert np.isnan(lines[1].gain_iqm.low)
    assert np.isnan(lines[2].against_reference.p) and lines[2].against_reference.value == 0
    assert lines[1].against_reference.p < 0.01  # one test, not two


def test_a_teacher_below_the_base_has_no_share_and_targets_may_be_negative() -> None:
    assert np.isnan(Goal(base=0.5, teacher=0.4, best=0.5).recovered(0.45))
    assert Goal(0.5, 0.7, 0.7).recovered(0.6) == pytest.approx(0.5)
    assert Goal(0.5, 0.7, 0.7).target == pytest.approx(0.63)
    assert Goal(-2.0, -1.0, -1.0).target == pytest.approx(-1.1)


def test_teachers_trained_seed_by_seed_are_each_their_own_students_scale() -> None:
    def taught(seed: int, student: float, teacher: float) -> Record:
        found = record(seed, student, [student], True)
        found.summary["models"]["teacher t"]["t"]["rows"]["m"] = [teacher] * 4
        return found

    opd = [taught(0, 0.5, 0.5), taught(1, 0.6, 0.6), taught(2, 0.7, 0.7)]
    rl = [record(s, 0.4, [0.4], False) for s in (0, 1)]
    lines = standings({"opd": opd, "rl": rl}, ("t",), "opd", {"t": 1.0})
    assert [line.gain.value for line in lines] == pytest.approx([1, 0.5])  # 0.2 of the teachers' mean gain of 0.4
    assert (lines[0].gain.low, lines[0].gain.high) == pytest.approx((1, 1))


@pytest.mark.slow
def test_small_comparison_end_to_end(tmp_path: Path) -> None:
    arguments = [
        "compare", "--methods", "opd_analytic,merge", "--tasks", "ocr", "--seeds", "0,1", "--budget", "400",
        "--set", "evaluation.steps=1", "--results", "results/c",
    ]  # fmt: skip
    for _ in range(2):  # the second time everything is there already
        done = bench(arguments, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "merge" in done.stdout
    (path,) = (tmp_path / "results" / "c").glob("comparison-*.json")
    lines = json.loads(path.read_text())["lines"]
    assert [line["label"] for line in lines] == ["opd_analytic", "merge"]
    assert all(line["seeds"] == 2 for line in lines)
    (page,) = (tmp_path / "results" / "c").glob("report-*/index.html")
    assert str(page) in done.stdout
    assert all(line["label"] in page.read_text() for line in lines)
    tables = {table.name for table in (page.parent / "tables").glob("*.csv")}
    assert {"scores.csv", "cost.csv", "curves.csv", "claims.csv", "runs.csv"} <= tables


def test_weights_are_an_axis_whose_lines_are_a_front(capsys) -> None:
    def weighted(seed: int, weight: float, scores: tuple[float, float]) -> Record:
        found = record(seed, scores[0], [scores[0]], False)
        for rows in found.summary["models"].values():
            rows["u"] = rows["t"] | {"rows": {"m": [scores[1]] * 4}}
        points = [row | {"task": task} for row in found.evaluations for task in ("t", "u")]
        return Record(found.summary, points, found.spec | {"params": {"weights": {"u": weight}}})

    groups = {
        "rl weights.u=1": [weighted(s, 1.0, (0.8, 0.25)) for s in (0, 1)],
        "rl weights.u=4": [weighted(s, 4.0, (0.25, 0.5)) for s in (0, 1)],
    }
    runs = {(label, seed): SimpleNamespace(folder=Path(f"{label}-{seed}")) for label in groups for seed in (0, 1)}
    table, found = standings(groups, ("t", "u"), "rl weights.u=1", {}), fronts(groups, ("t", "u"))
    plain = as_json(table, [], "rl weights.u=1", 1000, runs)
    assert "fronts" not in plain  # as before, where there are none
    (front,) = as_json(table, found, "rl weights.u=1", 1000, runs)["fronts"]
    assert front["label"] == "rl" and front["best"] == tuple(groups)
    for line in plain["lines"]:
        assert front["points"][line["label"]] == line["tasks"]
    assert front["hypervolume"]["value"] == pytest.approx(0.8 * 0.25 + 0.25 * 0.25)
    print_fronts(found)
    assert "0.263" in capsys.readouterr().out
    print_fronts([])
    assert capsys.readouterr().out == ""


def test_interference_is_averaged_over_runs() -> None:
    rows = lambda value: [{"share": 0.5, "interference": {"a | b": {"all": value, "block 0": 9.0}}}]
    runs = [replace(record(s, 0.5, [0.5], False), probes=rows(v)) for s, v in enumerate((0.2, 0.4))]
    (point,) = cosines(runs)["a | b"].values()
    assert point.value == pytest.approx(0.3)
    half = 12.706 * 0.1  # Student's t with one degree of freedom times the standard error
    assert (point.low, point.high) == pytest.approx((0.3 - half, 0.3 + half), rel=0.2)


def test_what_is_set_need_only_fit_the_grids_kernels() -> None:
    """The recipe's deterministic kernel takes no eta; both kernels of the grid do."""
    methods, axes = ["opd_analytic", "opd_ppo"], ["kernel=flow_sde,cps", "opd_ppo.advantage=log_ratio,state_kl"]
    found = probe_specs(methods, ["ocr"], "micro", axes, ["sampler.eta=0.7"])
    assert len(found) == 6
    assert {(spec.sampler.kernel, spec.sampler.eta) for _, _, spec in found} == {("flow_sde", 0.7), ("cps", 0.7)}
    assert {point for _, point, _ in found} == {("sampler.kernel=flow_sde",), ("sampler.kernel=cps",)}
    with pytest.raises(UsageError, match="eta must be at most 0"):
        probe_specs(methods, ["ocr"], "micro", [], ["sampler.eta=0.7"])


@pytest.mark.parametrize(
    ("axes", "overrides", "student", "said"),
    [
        ([], ["optimizer.lr=7"], "base", "optimizer.lr has no effect in a probe"),
        ([], ["sft.ema.decay=0.5"], "base", "ema.decay has no effect in a probe"),
        ([], ["budget.updates=5"], "base", "budget has no effect in a probe"),
        ([], ["evaluation={steps: 3}"], "base", "evaluation.steps has no effect"),
        ([], ["probes.interference=3"], "base", "probes.interference has no effect"),
        ([], ["checkpoint_every=3"], "base", "checkpoint_every has no effect"),
        (["lr=1,2"], [], "base", "optimizer.lr has no effect in a probe"),
        ([], ["lora.start=/nonexistent"], "base", "name the adapter to probe with --student"),
        ([], ["lora.rank=4"], "folder", "lora.rank has no effect in a probe of a trained student"),
    ],
)
def test_a_probe_takes_no_setting_that_changes_nothing_in_it(
    axes: list[str], overrides: list[str], student: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        probe_specs(["opd_analytic", "sft"], ["ocr"], "micro", axes, overrides, student)


def test_a_probe_takes_what_changes_it_and_each_method_once() -> None:
    taken = ["lora.rank=4", "sampler.steps=5", "params.trajectories=2", "teachers.ocr=shipped", "compute.batch=2",
             "teacher_guidance.ocr=2", "device=cpu"]  # fmt: skip
    ((_, _, spec),) = probe_specs(["opd_analytic"], ["ocr"], "micro", [], taken)
    assert (spec.lora.rank, spec.sampler.steps, spec.teacher_guidance) == (4, 5, {"ocr": 2.0})
    with pytest.raises(UsageError, match="a method is named twice"):
        probe_specs(["opd_analytic", "opd_analytic"], ["ocr"], "micro", [], [])
