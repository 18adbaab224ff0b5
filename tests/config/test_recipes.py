"""What a recipe's sections mean, and that published recipes are what they say."""

from pathlib import Path

import pytest
import yaml

from bench.config.resolve import PRESETS, describe, preset_tasks, resolve
from bench.errors import UsageError
from bench.registry import find
from bench.sampler.levels import FlowLevels
from tasks.preference.judges import JUDGES


@pytest.mark.parametrize("method", ["multi_reward", "cascade"])
def test_a_recipe_knows_what_an_engine_needs(method: str) -> None:
    """The policy-gradient engines get a kernel with noise by themselves; what the user says still wins."""
    assert resolve(method, ["all"]).sampler.kernel == "ode"
    for engine in ("grpo", "flow_dppo", "tempflow"):
        chosen = resolve(method, ["all"], overrides=[f"params.engine={engine}"])
        assert (chosen.sampler.kernel, chosen.params["engine"]) == ("cps", engine)
    told = resolve(method, ["all"], overrides=["params.engine=grpo", "sampler.kernel=flow_sde", "sampler.eta=0.7"])
    assert (told.sampler.kernel, told.sampler.eta) == ("flow_sde", 0.7)


def test_a_recipe_knows_its_single_task() -> None:
    assert resolve("single_task", ["geneval"]).budget != resolve("single_task", ["ocr"]).budget


def test_a_recipe_knows_a_setting_of_its_method() -> None:
    rate = lambda *sets: resolve("opd_ppo", ["all"], overrides=list(sets)).optimizer.lr
    chosen = "params.advantage=state_kl"
    assert rate(chosen) > rate() == rate("params.advantage=log_ratio")
    assert rate(chosen, "optimizer.lr=1") == 1


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_published_recipes_resolve_and_name_their_source(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    whole = None if find("method", content["method"]).several_tasks or "tasks" in content else ["geneval"]
    spec = resolve(None, whole, preset=Path(path.stem))
    assert (spec.method, spec.backbone, spec.device) == (content["method"], content["backbone"], "cuda")
    assert "arXiv" in path.read_text().partition("method:")[0]
    assert find("method", spec.method).predict(spec, describe(spec.backbone).sampler(spec)) > 0
    own = (spec.compute.resolution, spec.compute.precision, spec.lora.rank, spec.lora.alpha, spec.optimizer.lr)
    if spec.backbone == "sd3":
        rate = 1e-4 if path.stem == "diffusionopd-sd35-aesthetic-teacher" else 3e-4  # GRPO-Guard's
        assert own == (512, "float16", 32, 64, rate)
    else:
        klein = path.stem == "flow-factory-nft-flux2-klein"
        assert own == (384 if klein else 512, "bfloat16", 64, 128, 1e-4 if klein else 3e-4)
        # A preset says what the family would do by itself where the released configuration agrees.
        assert spec.sampler.table == describe(spec.backbone).levels_at(spec.compute).table


@pytest.mark.parametrize("stem", ["nft-sd35-multi-reward", "diffusionopd-sd35-aesthetic-teacher"])
def test_published_reward_sets_are_sums_of_three_preference_scores(stem: str) -> None:
    spec = resolve(None, None, preset=Path(stem))
    assert spec.rewards == {"pickscore": {"pickscore": 1.0, "clipscore": 1.0, "hpsv2": 1.0}}
    scorers = [find("task", name)("photo", {}) for name in spec.rewards["pickscore"]]
    assert scorers[1].judge.metric == "clipscore-100"  # the convention of DiffusionNFT's code
    bounds = [JUDGES[name].build({"model": "folder"}).bounds for name in spec.rewards["pickscore"]]
    assert bounds == [(0, 26), (0, 1), (0, 1)]
    assert "reward_set" not in spec.record()["params"]


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'nft-sd35'"):
        resolve("single_task", ["geneval"], preset=Path("nft-sd3"))


def test_the_distillation_recipe_costs_what_its_paper_counts() -> None:
    """24 trajectories a task; student 9 steps x 3 x 2 branches (its rollout is in them), teacher 9 x its branches."""
    spec = resolve("opd_analytic", ["all"], backbone="sd3", preset=Path("diffusionopd-sd35"))
    assert spec.teacher_guidance == {"geneval": 1.0, "ocr": 4.5, "pickscore": 4.5}
    per_task = {task: 9 * 3 * 2 + 9 * (1 if guidance == 1 else 2) for task, guidance in spec.teacher_guidance.items()}
    predicted = find("method", "opd_analytic").predict(spec, spec.sampler.build(FlowLevels(3.0)))
    assert predicted == 24 * sum(per_task.values())


def test_a_presets_tasks_hold_where_nobody_names_any() -> None:
    preset = Path("flow-grpo-sd35-ocr")
    assert preset_tasks(preset, None) == ["ocr"]
    assert preset_tasks(None, None) == ["geneval", "ocr", "pickscore"]
    with pytest.raises(UsageError, match="the preset is for tasks"):
        preset_tasks(preset, ["geneval"])
    assert resolve("single_task", preset_tasks(preset, None), preset=preset).backbone == "sd3"
    with pytest.raises(UsageError, match="the preset is for method opd_analytic, not opd_ppo"):
        resolve("opd_ppo", None, preset=Path("diffusionopd-sd35"))
    one = resolve(None, ["ocr"], preset=Path("diffusionopd-sd35"))
    assert list(one.teachers) == ["ocr"]
    mine = resolve(None, ["ocr"], preset=Path("diffusionopd-sd35"), teachers="train")
    assert mine.teachers == {"ocr": "train"}


def test_values_of_scorers_are_words() -> None:
    spec = resolve("merge", ["clipscore"], backbone="sd3", overrides=["scorers.clipscore.convention=30"])
    assert spec.scorers == {"clipscore": {"convention": "30"}}
    with pytest.raises(UsageError, match="scorers is a section"):
        resolve("merge", ["ocr"], overrides=["scorers=5"])


def test_a_runs_spec_makes_it_again(tmp_path) -> None:
    """spec.json is a preset of all but the seed."""
    import json

    from bench.config.resolve import resolve

    made = resolve("opd_analytic", ["ocr"], 3, overrides=["sampler.kernel=cps", "sampler.eta=0.5", "optimizer.lr=1e-4"])
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"spec": made.record(), "backbone_hash": "f"}))
    again = resolve(None, None, 5, preset=path)
    assert again.seed == 5
    assert again.with_seed(3) == made
