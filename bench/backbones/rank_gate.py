"""Gates: factors on the channels of a LoRA layer's rank, so that one adapter holds a family of weight changes.

With factors g [r] the change of a weight is s B diag(g) A. For any g it is a plain LoRA adapter of the same rank, into
whose A the factors are multiplied when it is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer
    from torch import Tensor, nn

GATE = "rank_gate"
"""Attribute of a layer's A with its factors. It is no buffer, so that it is neither saved nor taken for a weight."""


def gate_of(layer: LoraLayer, name: str) -> Tensor | None:
    """The factors [r] of an adapter in a layer; None without a gate."""
    gate = layer.lora_A[name].__dict__.get(GATE)
    return None if gate is None else gate.flatten()


def set_gate(layer: LoraLayer, name: str, gate: Tensor) -> None:
    """Give an adapter in a layer the factors `gate` [r], which replace earlier ones.

    The hook is for peft's own forward pass; bench/backbones/lora_forward.py multiplies the factors in itself.
    """
    a = layer.lora_A[name]
    if GATE not in a.__dict__:
        a.register_forward_hook(_gated)
    # A's outputs are [..., r], or [N, r, h, w] for a convolution, whose weight [r, i, k, k] has the same last axes.
    weight = a.get_parameter("weight")
    a.__dict__[GATE] = gate.view(-1, *[1] * (weight.dim() - 2))


def gated(a: Tensor, gate: Tensor) -> Tensor:
    """A's weight [r, ...] with the factors multiplied in."""
    return gate.view(-1, *[1] * (a.dim() - 1)) * a


def _gated(a: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
    return outputs * a.__dict__[GATE]
