"""Optimizers by name: every one that can be named trains and resumes to the bit; what has no effect is refused."""

import copy

import pytest
import torch

from bench.config.optimizers import copies_of_state, optimizer_classes, optimizer_of
from bench.config.resolve import resolve
from bench.config.spec import OptimizerSpec
from bench.errors import UsageError


def steps(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, count: int) -> None:
    for step in range(count):
        parameter.grad = (parameter.detach() - 1) * (1 + 0.1 * step)
        optimizer.step()


def restored(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """As bench/training/loop.py restores it: tensors by name, without those that are not there yet."""
    tensors = {key: torch.as_tensor(value).clone() for key, value in saved["state"].get(0, {}).items() if value is not None}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: tensors} if tensors else {}})


@pytest.mark.parametrize("name", sorted(optimizer_classes()))
def test_every_optimizer_resumes_to_the_bit(name: str) -> None:
    spec = OptimizerSpec(name=name, lr=0.01)
    start = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    whole, cut = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = optimizer_of(spec, [whole])
    steps(optimizer, whole, 3)
    assert not torch.equal(whole, start)
    cut.data.copy_(whole)
    saved = copy.deepcopy(optimizer.state_dict())
    again = optimizer_of(spec, [cut])
    restored(again, saved)
    for own, parameter in ((optimizer, whole), (again, cut)):
        steps(own, parameter, 2)
    assert torch.equal(whole, cut)


def test_the_default_is_adamw_in_one_pass() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = optimizer_of(OptimizerSpec(), [parameter])
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"]
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["weight_decay"] == 1e-4


@pytest.mark.parametrize(("name", "copies"), [("AdamW", 2), ("SGD", 0), ("Muon", 1), ("Adagrad", 1)])
def test_memory_counts_what_is_kept(name: str, copies: int) -> None:
    assert copies_of_state(OptimizerSpec(name=name)) == copies


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["optimizer.name=Adamw"], "optimizer.name 'Adamw'.*did you mean 'AdamW'"),
        (["optimizer.name=LBFGS"], "optimizer.name 'LBFGS'"),
        (["optimizer.name=SGD", "optimizer.beta1=0.5"], "optimizer.beta1 has no effect: torch.optim.SGD has no betas"),
        (["optimizer.name=SGD", "optimizer.options.momentun=0.9"], "option of torch.optim.SGD 'momentun'.*'momentum'"),
        (["optimizer.name=SGD", "optimizer.options.momentum=-1"], "optimizer.name SGD: Invalid momentum value"),
        (["optimizer.options.lr=1"], "optimizer.options.lr is set by optimizer.lr"),
        (["optimizer.options.betas=1"], "optimizer.options.betas is set by optimizer.beta1 and beta2"),
    ],
)
def test_what_an_optimizer_does_not_have_is_refused(said: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        resolve("single_task", ["ocr"], overrides=said)


def test_muon_trains_matrices_only() -> None:
    with pytest.raises(UsageError, match=r"optimizer\.name Muon: Muon only supports 2D"):
        optimizer_of(OptimizerSpec(name="Muon"), [torch.nn.Parameter(torch.zeros(3))])


def test_another_optimizer_is_another_run() -> None:
    def digest(*said: str) -> str:
        return resolve("single_task", ["ocr"], overrides=list(said)).digest("")

    assert digest() == digest("optimizer.name=AdamW", "optimizer.options={}")
    assert len({digest(), digest("optimizer.name=SGD"), digest("optimizer.name=SGD", "optimizer.options.momentum=0.9")}) == 3
