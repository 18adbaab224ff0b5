"""On which GPU the Triton kernels are launched."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bench.sampler.transitions import Coefficients

fused = pytest.importorskip("bench.sampler.triton_step", reason="triton is not installed")


class Launches:
    """Stands for a kernel; writes down which GPU is the current one when it is launched."""

    def __init__(self, current: list[int], seen: list[int]):
        self.current, self.seen = current, seen

    def __getitem__(self, grid):
        return lambda *_arguments, **_switches: self.seen.append(self.current[-1])


def test_kernels_are_launched_on_the_gpu_of_their_tensors(monkeypatch) -> None:
    """Triton takes the current GPU, whatever tensors it is given. There need be no GPU here: tensors without content say
    that they are on the second one, and launches are only written down."""
    current, seen = [0], []

    @contextmanager
    def made_current(device: torch.device):
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", made_current)
    for name in vars(fused).copy():
        if name.endswith("_kernel"):
            monkeypatch.setattr(fused, name, Launches(current, seen))
    mode, blank = FakeTensorMode(), torch.empty
    make = lambda *shape: FakeTensor(mode, blank(*shape, device="meta"), torch.device("cuda:1"))
    monkeypatch.setattr(torch, "empty", lambda *shape, **_: make(*shape))
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: make(*x.shape))
    x, v, drawn = (make(2, 3, 4, 4) for _ in range(3))
    fused.fused_step(x, v, Coefficients(0.9, -0.1, 0), keep_velocity=False)
    assert seen == [1]
    context = SimpleNamespace(save_for_backward=lambda *_: None, saved_tensors=(x, v, None, drawn))
    fused._LogProb.forward(context, x, v, None, drawn, 0.9, -0.1, 0.5, 1.0)
    fused._LogProb.backward(context, make(2))
    context.saved_tensors = (v, None, drawn, None)
    fused._Match.forward(context, v, None, drawn, None, 1.0, 1.0, 1.0)
    fused._Match.backward(context, make(2))
    assert seen == [1] * 5
    assert current == [0]
