"""The changed weight computes what peft's thin products compute, and is used where it is less work."""

from unittest.mock import patch

import pytest
import torch
from peft.tuners.lora import Linear

from bench.backbones.adapters import Adapters, Shape
from bench.backbones.lora_forward import by_weight

WIDE, OUT = 24, 40


def layer_of(rank: int, trainable: bool) -> tuple[Adapters, Linear]:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(WIDE, OUT)).requires_grad_(False)
    adapters = Adapters(network, ("0",))
    adapters.add("a", Shape(rank, 2.0 * rank), 1, trainable=trainable)
    for parameter in adapters.parameters("a"):
        parameter.data = torch.randn_like(parameter)
    adapters.use("a")
    return adapters, network[0]


def thin(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    return type(layer).forward(layer, x)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("rank", [2, 16])
def test_it_is_pefts_function_with_its_gradients(rank: int, trainable: bool) -> None:
    adapters, layer = layer_of(rank, trainable)
    x = torch.randn(3, 7, WIDE, requires_grad=True)
    wanted, found = thin(layer, x), layer(x)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    sources = [x, *(adapters.parameters("a") if trainable else ())]
    slope = torch.randn_like(wanted)
    pairs = zip(torch.autograd.grad(found, sources, slope), torch.autograd.grad(wanted, sources, slope), strict=True)
    for mine, theirs in pairs:
        assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(
    ("rank", "used"),
    [
        (4, False),  # 24 * 40 > 3 * 4 * 64
        (6, True),  # 24 * 40 < 3 * 6 * 64
    ],
)
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
def test_it_is_used_where_it_is_less_work(rank: int, used: bool, trainable: bool, gradients: bool) -> None:
    """By the layer's shape: a rollout has the last bits of training, and an adapter those of its copy."""
    _, layer = layer_of(rank, trainable)
    x = torch.randn(2, WIDE)
    with torch.set_grad_enabled(gradients), patch.object(torch, "addmm", wraps=torch.addmm) as made:
        layer(x)
    assert bool(made.call_count) == used


def test_half_precision_and_the_base_are_pefts() -> None:
    """A small change of a weight would be rounded away in bfloat16."""
    adapters, layer = layer_of(16, trainable=False)
    x = torch.randn(2, WIDE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), thin(layer, x))
    adapters.use(None)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_rows_do_not_depend_on_their_company() -> None:
    _, layer = layer_of(16, trainable=False)
    x = torch.randn(64, WIDE)
    assert torch.allclose(by_weight(layer, x)[:5], by_weight(layer, x[:5]), atol=1e-6)
