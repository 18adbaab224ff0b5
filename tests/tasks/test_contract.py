"""What every registered task promises, on the micro world."""

import time

import pytest
import torch

from bench.api.task import SPLITS
from bench.errors import UsageError
from bench.registry import find, task_names


@pytest.mark.parametrize("name", task_names(["all"]))
def test_task_contract(name: str) -> None:
    import numpy as np

    task = find("task", name)("micro")
    assert task.name == name
    texts = {split: {p.text for p in task.prompts(split)} for split in SPLITS}
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert not texts["test"] & texts["validation"]
    assert len(task.prompts("test")) >= 144
    prompts = (task.prompts("test") * 2)[:96]
    ugly = torch.cat([
        torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32),
        torch.rand(94, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    ])  # fmt: skip
    first = task.score(ugly, prompts)
    started = time.process_time()  # other tests may share the cores
    second = task.score(ugly, prompts)
    assert time.process_time() - started < 0.5
    np.testing.assert_array_equal(first.rewards, second.rewards)
    assert ((first.rewards >= 0) & (first.rewards <= 1)).all()
    assert task.headline in {"reward", *first.metrics}
    assert all(values.shape == (96,) for values in first.metrics.values())


@pytest.mark.parametrize("name", task_names(["all"]))
def test_sampling_training_prompts(name: str) -> None:
    import numpy as np

    task = find("task", name)("micro")
    train = {p.text for p in task.prompts("train")}
    drawn = task.sample(24, np.random.default_rng(0))
    assert [p.text for p in drawn] == [p.text for p in task.sample(24, np.random.default_rng(0))]
    assert {p.text for p in drawn} <= train
    strata = {p.stratum for p in task.prompts("train")}
    shares = {s: task.training_shares.get(s, 1) for s in strata}
    for stratum in strata:
        wanted = len(drawn) * shares[stratum] / sum(shares.values())
        assert abs(sum(p.stratum == stratum for p in drawn) - wanted) < 1


def test_a_world_that_a_task_does_not_serve_is_refused() -> None:
    with pytest.raises(UsageError, match="micro"):
        find("task", "ocr")("micr")
