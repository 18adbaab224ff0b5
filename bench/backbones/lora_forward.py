"""The forward pass of LoRA layers in float32: one product with the changed weight where that is less work.

peft computes x W^T + s (x A^T) B^T, with two thin products per token, which also need gradients. x (W + s B A)^T is the
same function. Its changed weight is made once per pass, whatever the number of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from bench.backbones.rank_gate import gate_of, gated

if TYPE_CHECKING:
    from peft.tuners.lora import Linear
    from torch import Tensor, nn


def by_weight(layer: Linear, x: Tensor) -> Tensor:
    """The layer's output, with the changed weight where that is less work and with peft's forward pass otherwise."""
    name = None if layer.disable_adapters else layer.active_adapters[0]
    if name is None or name not in layer.lora_A or not _is_less_work(layer, name, x):
        return type(layer).forward(layer, x)
    base = cast("nn.Linear", layer.base_layer)
    a, b = _factors(layer, name)
    gate = gate_of(layer, name)
    weight = torch.addmm(base.weight, b, a if gate is None else gated(a, gate), alpha=layer.scaling[name])
    return torch.nn.functional.linear(x, weight, base.bias)


def _factors(layer: Linear, name: str) -> tuple[Tensor, Tensor]:
    """A [r, i] and B [o, r] of an adapter."""
    return cast("Tensor", layer.lora_A[name].weight), cast("Tensor", layer.lora_B[name].weight)


def _is_less_work(layer: Linear, name: str, x: Tensor) -> bool:
    """Whether the changed weight takes fewer operations than the thin products, in training with many tokens.

    For N tokens, widths i and o and rank r, the thin products take N r (i + o) multiplications, and three times as many
    with their gradients. The changed weight takes i o r, which is little for many tokens, and N i o for its gradient.
    The choice depends on the layer's shape only: a policy must have the same last bits in rollouts and in training, and
    an adapter the same as its copy. In half precision the sum would round away small changes of a weight.
    """
    a, b = _factors(layer, name)
    if a.dtype != torch.float32 or x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
        return False
    if layer.lora_variant or layer.lora_bias[name]:
        return False
    (rank, wide), out = a.shape, len(b)
    return wide * out < 3 * rank * (wide + out)
