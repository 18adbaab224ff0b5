"""A task with several rewards: what it returns, what its evaluations record, and what becomes of a failure."""

import json

import numpy as np
import pytest
import torch

from bench.api.scores import blanked, rows_of, score_each, score_finite, stacked, unscored
from bench.api.task import Scores
from bench.errors import UsageError
from bench.sampler.levels import FlowLevels
from bench.sampler.rollout import euler
from bench.scoring.loading import load_tasks
from bench.scoring.remote import RemoteTask
from bench.scoring.reward_set import RewardSet
from bench.store.shapes import check_evaluation
from bench.training.evaluate import Evaluation, evaluate
from tests.tasks.test_remote import serving  # noqa: F401
from tests.tiny_tasks import Dark, Red

pytestmark = pytest.mark.usefixtures("tiny_tasks")

WEIGHTS = {"red": 2.0, "dark": 0.5}


@pytest.fixture
def both() -> RewardSet:
    task = load_tasks(("red",), "micro", rewards={"red": WEIGHTS})["red"]
    assert isinstance(task, RewardSet)
    return task


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) ** torch.arange(1, 5).view(4, 1, 1, 1)


def test_the_weighted_sum_and_its_parts(both: RewardSet, images: torch.Tensor) -> None:
    prompts = both.prompts("test")[:4]
    assert [p.text for p in prompts] == [p.text for p in Red("micro").prompts("test")[:4]]
    red, dark = images[:, 0].mean((1, 2)).double().numpy(), (1 - 2 * images.mean((1, 2, 3))).double().numpy()
    found = both.score(images, prompts)
    np.testing.assert_allclose(found.rewards, 2 * red + 0.5 * dark, rtol=1e-12)
    assert list(found.separate) == ["red", "dark"]
    np.testing.assert_array_equal(found.separate["dark"], dark)
    assert set(found.metrics) == {"redness", "dark.darkness"}
    assert found.details == [{"by": "red"}] * 4
    torch.testing.assert_close(
        both.differentiable_reward(images, prompts).double().numpy(), found.rewards, rtol=1e-6, atol=1e-7
    )
    assert (both.lowest_reward, both.highest_reward) == (-0.5, 2.5)
    assert Red("micro").highest_reward == 1.0
    assert both.differentiable == (Red("micro").differentiable and Dark("micro").differentiable)
    assert (both.name, both.headline) == ("red", "reward")
    assert both.audit(images, prompts).keys() == {"audited", "dark.audited"}


def test_its_reward_in_records_stays_the_tasks_own(both: RewardSet, images: torch.Tensor) -> None:
    rows = rows_of(both, both.score(images, both.prompts("test")[:4]))
    assert set(rows) == {"reward", "redness", "dark.darkness", "dark.reward", "reward_sum"}
    alone = rows_of(Red("micro"), Red("micro").score(images, both.prompts("test")[:4]))
    for name, values in alone.items():
        np.testing.assert_array_equal(rows[name], values)
    np.testing.assert_allclose(rows["reward_sum"], 2 * rows["reward"] + 0.5 * rows["dark.reward"])


def test_its_name_tells_scorers_and_weights(both: RewardSet) -> None:
    assert both.scorer_name == "2.0 x micro-red-1 + 0.5 x micro-dark-1"
    other = load_tasks(("red",), "micro", rewards={"red": WEIGHTS | {"dark": 0.25}})["red"]
    assert both.scorer_name != other.scorer_name and both.version != other.version
    assert load_tasks(("red",), "micro")["red"].scorer_name == "micro-red-1"


def test_a_scorer_of_two_tasks_is_loaded_once() -> None:
    tasks = load_tasks(("red", "dark"), "micro", rewards={"red": WEIGHTS})
    assert tasks["red"].others["dark"] is tasks["dark"] and isinstance(tasks["dark"], Dark)


def test_it_works_elsewhere_only_if_all_do(monkeypatch, both: RewardSet) -> None:
    assert both.others["dark"].elsewhere and not both.elsewhere
    monkeypatch.setattr(Red, "elsewhere", True)
    assert both.elsewhere


def test_a_reward_without_gradient_is_refused(both: RewardSet, images: torch.Tensor) -> None:
    task = load_tasks(("red",), "micro", rewards={"red": {"red": 1.0, "ocr": 1.0}})["red"]
    with pytest.raises(UsageError, match="the reward of task 'ocr' has no gradient"):
        task.differentiable_reward(images, task.prompts("test")[:4])


def test_a_failure_of_one_scorer_loses_the_image(both: RewardSet, images: torch.Tensor, monkeypatch) -> None:
    honest = Dark.score

    def fails(self, images, prompts):
        found = honest(self, images, prompts)
        return Scores(np.where(np.arange(len(prompts)) == 1, np.nan, found.rewards), found.metrics)

    monkeypatch.setattr(Dark, "score", fails)
    rows = rows_of(both, score_each(both, images, both.prompts("test")[:4]))
    assert all(np.isnan(values).tolist() == [False, True, False, False] for values in rows.values())


def test_parts_keep_the_separate_rewards(both: RewardSet, images: torch.Tensor) -> None:
    prompts = both.prompts("test")[:4]
    whole = both.score(images, prompts)
    split = stacked([both.score(images[:3], prompts[:3]), both.score(images[3:], prompts[3:])])
    np.testing.assert_array_equal(split.separate["dark"], whole.separate["dark"])
    fine = np.array([True, False, True, True])
    found = score_finite(fine, images, prompts, both.score)
    np.testing.assert_array_equal(found.separate["red"][fine], whole.separate["red"][fine])
    assert np.isnan(found.separate["red"][1]) and np.isnan(found.rewards[1]) and found.details[1]
    assert np.isnan(unscored(whole, 2, "why").separate["dark"]).all()
    assert blanked(whole, "reward").separate.keys() == whole.separate.keys()


@pytest.mark.parametrize("audit", [False, True])
def test_an_evaluation_records_the_further_scorers(micro, tmp_path, both: RewardSet, audit: bool) -> None:
    found = evaluate(micro, both, None, euler(FlowLevels(1.0), 1), 1.0, batch=6, audit=audit)
    alone = evaluate(micro, Red("micro"), None, euler(FlowLevels(1.0), 1), 1.0, batch=6)
    record = json.loads(json.dumps(found.record()))
    check_evaluation(tmp_path, record, "red", 15)
    np.testing.assert_array_equal(Evaluation.from_record(record).rows["dark.reward"], found.rows["dark.reward"])
    assert ("dark.audited" in found.rows) == audit
    assert found.estimate() == alone.estimate()
    assert found.estimate("reward_sum").value == pytest.approx(
        2 * found.estimate("reward").value + 0.5 * found.estimate("dark.reward").value
    )


def test_any_of_its_scorers_may_be_a_server(both: RewardSet, images: torch.Tensor, serving) -> None:  # noqa: F811
    url = serving(Dark("micro"))
    task = load_tasks(("red",), "micro", {"dark": {"url": url}}, rewards={"red": WEIGHTS})["red"]
    assert isinstance(task.others["dark"], RemoteTask) and task.scorer_name == both.scorer_name
    prompts = both.prompts("test")[:4]
    bytes_of = (images * 255).round() / 255
    np.testing.assert_allclose(task.score(bytes_of, prompts).rewards, both.score(bytes_of, prompts).rewards, rtol=1e-6)
