"""The optimizer of a spec: any class of torch.optim whose step needs nothing but gradients."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.config.spec import OptimizerSpec
from bench.errors import UsageError, one_line, unknown
from bench.lazy import torch

if TYPE_CHECKING:
    from torch import nn

WITHOUT = ("Optimizer", "LBFGS", "SparseAdam")
"""The base class, and classes that evaluate the loss themselves or take sparse gradients."""
FUSED = ("AdamW",)
"""Classes that take one pass over the tensors; on the CPU four times as fast as the default."""
GIVEN = {"lr": "lr", "weight_decay": "weight_decay", "eps": "eps", "betas": "beta1 and beta2"}
"""Argument of a class -> the setting that gives it."""


def optimizer_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Name -> class, of those that can be named."""
    found = {name: kind for name, kind in vars(torch.optim).items() if inspect.isclass(kind) and name not in WITHOUT}
    return {name: kind for name, kind in found.items() if issubclass(kind, torch.optim.Optimizer)}


def optimizer_of(spec: OptimizerSpec, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of these parameters.

    Settings that its class does not have must be at their defaults. Raises UsageError for such a setting, for an
    unknown class or option, for a value that the class refuses, and for parameters that it cannot train.
    """
    classes = optimizer_classes()
    if spec.name not in classes:
        raise unknown("optimizer.name", spec.name, classes)
    kind = classes[spec.name]
    takes = dict(inspect.signature(kind).parameters)
    if "eps" in takes and not isinstance(takes["eps"].default, float):  # Adafactor's are two of another meaning
        takes.pop("eps")
    values = {"lr": spec.lr, "weight_decay": spec.weight_decay, "eps": spec.eps, "betas": (spec.beta1, spec.beta2)}
    given: dict[str, Any] = {name: value for name, value in values.items() if name in takes}
    default = OptimizerSpec()
    for setting, argument in {"weight_decay": "weight_decay", "eps": "eps", "beta1": "betas", "beta2": "betas"}.items():
        if argument not in takes and getattr(spec, setting) != getattr(default, setting):
            raise UsageError(f"optimizer.{setting} has no effect: torch.optim.{spec.name} has no {argument}")
    own = sorted(takes.keys() - values.keys() - {"params"})
    for name in spec.options:
        if name in GIVEN:
            raise UsageError(f"optimizer.options.{name} is set by optimizer.{GIVEN[name]}")
        if name not in own:
            raise unknown(f"option of torch.optim.{spec.name}", name, own)
    if spec.name in FUSED and not {"fused", "foreach"} & spec.options.keys():
        given["fused"] = True
    try:
        return kind(parameters, **given, **spec.options)  # type: ignore[arg-type]  # the classes' signatures differ
    except (ValueError, TypeError, RuntimeError) as error:
        raise UsageError(f"optimizer.name {spec.name}: {one_line(error)}") from error


def copies_of_state(spec: OptimizerSpec) -> int:
    """Tensors of a parameter's size that the optimizer keeps for each parameter, for the prediction of memory."""
    parameter = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = optimizer_of(spec, [parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = (value for state in optimizer.state.values() for value in state.values())
    return sum(isinstance(value, torch.Tensor) and value.numel() == parameter.numel() for value in held)


def check_optimizer(spec: OptimizerSpec) -> None:
    """Raise UsageError as `optimizer_of` does, for a single matrix. PyTorch is not imported for AdamW."""
    if (spec.name, spec.options) != (OptimizerSpec().name, {}):
        optimizer_of(spec, [torch.nn.Parameter(torch.zeros(8, 8))])
