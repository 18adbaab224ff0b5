"""Devices: what is no device, and which GPU is not there, each in one line."""

import pytest
import torch

from bench.errors import MissingError, UsageError
from bench.jobs.dispatch import _places
from bench.system.devices import check_device


@pytest.fixture
def gpus(monkeypatch):
    """gpus(count): torch sees so many."""

    def make(count: int, shown: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if shown is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)

    return make


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1.0", "cpu:1", "meta", "mps", "CUDA", ""]
)
def test_what_is_no_device_is_wrong_use(gpus, device: str) -> None:
    gpus(2)
    with pytest.raises(UsageError, match=r"device of the scorer: .* is not one of cpu, cuda, cuda:0"):
        check_device(device, "scorer", "cure")


def test_a_gpu_that_is_not_there_is_missing(gpus) -> None:
    gpus(2)
    for there in ("cpu", "cuda", "cuda:0", "cuda:1"):
        check_device(there, "backbone", "cure")
    for absent in ("cuda:2", "cuda:7"):
        with pytest.raises(
            MissingError, match=rf"backbone needs '{absent}', but torch sees cuda:0 to cuda:1: name"
        ):
            check_device(absent, "backbone", "cure")
    gpus(1)
    with pytest.raises(MissingError, match="torch sees only cuda:0: name one of these"):
        check_device("cuda:1", "backbone", "cure")
    gpus(0)
    with pytest.raises(MissingError, match="torch sees no GPU: cure"):
        check_device("cuda:1", "backbone", "cure")


def test_what_the_environment_hides_is_named(gpus) -> None:
    """Where it shows the third GPU alone, that is cuda:0."""
    gpus(1, "2")
    with pytest.raises(MissingError, match=r"only cuda:0 \(CUDA_VISIBLE_DEVICES is '2'; GPUs are numbered from 0"):
        check_device("cuda:2", "backbone", "cure")
    gpus(0, "")
    with pytest.raises(MissingError, match=r"torch sees no GPU \(CUDA_VISIBLE_DEVICES is ''"):
        check_device("cuda", "backbone", "cure")


def test_processes_that_each_get_a_gpu_are_not_given_one_by_number(gpus) -> None:
    """Each sees its own alone, as the first."""
    gpus(2)
    assert _places("cuda") == [0, 1]
    with pytest.raises(UsageError, match="every local run gets its own GPU: use device=cuda, not cuda:1"):
        _places("cuda:1")
    gpus(0)
    with pytest.raises(MissingError, match="torch sees no GPU"):
        _places("cuda")
