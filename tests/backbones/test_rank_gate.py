"""A gate on the rank is the plain adapter whose A is multiplied by it: outputs, gradients, weight changes and files."""

from pathlib import Path

import pytest
import torch

from bench.backbones.adapters import Adapters, Shape

WIDE, OUT = 24, 40
RANKS = (4, 16)  # peft's thin products, and the changed weight in one product
INPUTS = {"linear": (3, 7, WIDE), "conv": (3, WIDE, 5, 5)}


def made(kind: str, rank: int) -> tuple[torch.nn.Sequential, Adapters]:
    """A layer with the adapters "gated" and "plain", which have equal tensors."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(WIDE, OUT) if kind == "linear" else torch.nn.Conv2d(WIDE, OUT, 3, padding=1)
    network = torch.nn.Sequential(layer).requires_grad_(False)
    adapters = Adapters(network, ("0",))
    for name in ("gated", "plain"):
        adapters.add(name, Shape(rank, 2.0 * rank), 1, trainable=True)
    for mine, other in zip(adapters.parameters("gated"), adapters.parameters("plain"), strict=True):
        mine.data = torch.randn_like(mine)
        other.data = mine.data.clone()
    return network, adapters


def multiply(adapters: Adapters, factors: list[float]) -> None:
    a, _ = adapters.parameters("plain")
    a.data.mul_(torch.tensor(factors).view(-1, *[1] * (a.dim() - 1)))


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("rank", RANKS)
def test_outputs_and_gradients(kind: str, rank: int) -> None:
    network, adapters = made(kind, rank)
    x, factors = torch.randn(INPUTS[kind]), torch.rand(rank).tolist()
    for again in (factors, torch.rand(rank).tolist()):  # a second gate replaces the first
        adapters.gate("gated", again)
    multiply(adapters, again)
    outputs, gradients = {}, {}
    for name in ("gated", "plain"):
        adapters.use(name)
        outputs[name] = network(x)
        gradients[name] = torch.autograd.grad(outputs[name].square().mean(), adapters.parameters(name))
    assert torch.allclose(outputs["gated"], outputs["plain"], atol=1e-4)
    (a, b), (plain_a, plain_b) = gradients["gated"], gradients["plain"]
    gate = torch.tensor(again).view(-1, *[1] * (a.dim() - 1))
    assert torch.allclose(a, gate * plain_a, atol=1e-4)  # the chain rule through A's factor
    assert torch.allclose(b, plain_b, atol=1e-4)


def test_half_precision() -> None:
    network, adapters = made("linear", 16)
    x, factors = torch.randn(INPUTS["linear"]), torch.rand(16).tolist()
    adapters.gate("gated", factors)
    multiply(adapters, factors)
    found = []
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for name in ("gated", "plain"):
            adapters.use(name)
            found.append(network(x))
    assert (found[0] - found[1]).abs().max() < 0.02 * found[1].abs().max()


@pytest.mark.parametrize("kind", INPUTS)
def test_changes_and_files_contain_it_and_checkpoints_do_not(kind: str, tmp_path: Path) -> None:
    _, adapters = made(kind, 4)
    before = adapters.state("gated")
    factors = [0.0, 1.0, 0.5, 2.0]
    adapters.gate("gated", factors)
    multiply(adapters, factors)
    (change,), (plain,) = adapters.deltas("gated").values(), adapters.deltas("plain").values()
    assert change.shape == plain.shape and torch.allclose(change, plain, atol=1e-5)
    adapters.save("gated", tmp_path)
    adapters.load("read", tmp_path)
    assert all(torch.equal(v, adapters.state("plain")[key]) for key, v in adapters.state("read").items())
    assert all(torch.equal(v, before[key]) for key, v in adapters.state("gated").items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_block_follows_every_new_gate(dtype: torch.dtype) -> None:
    """torch.compile may skip hooks that it does not know of, and may keep a tensor that it takes for a constant."""
    torch._dynamo.reset()
    network, adapters = made("linear", 16)
    network.to(dtype)
    adapters.gate("gated", [1.0] * 16)
    network[0].compile(backend="eager")
    adapters.use("gated")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        x, seen = torch.randn(INPUTS["linear"]), []
        for seed in range(3):
            torch.manual_seed(seed)
            adapters.gate("gated", torch.rand(16).tolist())
            seen.append(network(x))
            assert torch.equal(seen[-1], network[0].forward(x))
    assert not torch.equal(seen[0], seen[1])
    torch._dynamo.reset()
