"""What a recipe's sections mean."""

import pytest

from bench.spec import resolve


@pytest.mark.parametrize("method", ["multi_reward", "cascade"])
def test_a_recipe_knows_what_an_engine_needs(method: str) -> None:
    """The policy-gradient engines get a kernel with noise by themselves; what the user says still wins."""
    assert resolve(method, ["all"]).sampler.kernel == "ode"
    chosen = resolve(method, ["all"], overrides=["params.engine=grpo"])
    assert (chosen.sampler.kernel, chosen.params["engine"]) == ("cps", "grpo")
    told = resolve(method, ["all"], overrides=["params.engine=grpo", "sampler.kernel=flow_sde", "sampler.eta=0.7"])
    assert (told.sampler.kernel, told.sampler.eta) == ("flow_sde", 0.7)


def test_a_recipe_knows_its_single_task() -> None:
    assert resolve("single_task", ["geneval"]).budget != resolve("single_task", ["ocr"]).budget


def test_a_recipe_knows_a_setting_of_its_method() -> None:
    rate = lambda *sets: resolve("opd_ppo", ["all"], overrides=list(sets)).optimizer.lr
    chosen = "params.advantage=state_kl"
    assert rate(chosen) > rate() == rate("params.advantage=log_ratio")
    assert rate(chosen, "optimizer.lr=1") == 1
