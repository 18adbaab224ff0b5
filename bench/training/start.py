"""Starting the student from an existing adapter: reads it and checks that it has the student's shape."""

import json
import math

import torch
from pydantic import ValidationError
from torch import Tensor

from bench.api.lab import STUDENT
from bench.backbones.adapter_config import equal_alpha
from bench.backbones.adapters import ending, read_adapter, student_shape
from bench.backbones.flow import FlowBackbone
from bench.config.resolve import describe
from bench.config.settings import first_problem
from bench.config.spec import LoraSpec, Spec
from bench.errors import UsageError
from bench.weights.hub import adapter_folder


def add_student(backbone: FlowBackbone, spec: Spec, seed: int) -> None:
    """Add the student that a spec describes, equal to the base; one with all weights is not rounded where that is."""
    backbone.adapters.add(STUDENT, student_shape(spec), seed, trainable=True)
    rounded = backbone.dtype != torch.float32
    if spec.full_finetuning and rounded and (exact := backbone.exact_weights()):
        backbone.adapters.load_state(STUDENT, exact, backbone.source)


def read_start(lora: LoraSpec, own: tuple[str, ...] | None) -> dict[str, Tensor]:
    """The tensors of the adapter `lora.start`, ready to load into a student with the same scale and layers.

    `own`: the layers that the backbone adapts by default, where `lora.targets` is not set; None if not known yet.

    Raises UsageError, naming the settings to change, if rank, alpha, layers or the kind of adapter differ.
    """
    assert lora.start  # callers check that it is set
    if not lora.plain:
        raise UsageError("lora.start is for students with plain LoRA: leave out lora's other settings")
    config, state = read_adapter(adapter_folder(lora.start))
    for field in ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias"):
        if getattr(config, field):
            raise UsageError(
                f"the adapter {lora.start} uses {field}, which students do not support: start from a plain LoRA adapter"
            )
    alpha = equal_alpha(config)
    try:
        LoraSpec(rank=config.r, alpha=alpha)
    except ValidationError as error:
        cause = first_problem(error, LoraSpec, ("lora",))
        raise UsageError(f"the adapter {lora.start} does not fit a student: {cause}") from error
    if config.r != lora.rank or not math.isclose(alpha, lora.alpha, rel_tol=1e-12):
        stabilised = " (converted from its rank-stabilised scale)" if config.use_rslora else ""
        raise UsageError(
            f"the adapter {lora.start} has rank {config.r} and alpha {exact(alpha)}{stabilised}: "
            f"set lora.rank={config.r} and lora.alpha={exact(alpha)}"
        )
    targets = tuple(f".{target}" for target in lora.targets or own or ())
    # The leading dot makes a target match whole layer names only: "q" must not match "to_q".
    strays = [key for key in sorted(state) if not f".{layer_of(key)}".endswith(targets)]
    if targets and strays:
        stray = layer_of(strays[0])
        raise UsageError(
            f"the adapter {lora.start} changes {stray}, which is not among the student's targets: {targets_of(state)}"
        )
    return state


def check_start(spec: Spec) -> None:
    """Raise UsageError, as `read_start`, for an adapter that the student of a spec cannot start from."""
    if spec.lora.start:
        read_start(spec.lora, describe(spec.backbone).own().get("lora", {}).get("targets"))


def layer_of(key: str) -> str:
    """The layer that a tensor of an adapter belongs to, from the tensor's key."""
    return key.partition(".lora_")[0]


def targets_of(state: dict[str, Tensor]) -> str:
    """The setting of lora.targets that gives a student the same layers as an adapter."""
    layers = {ending(layer_of(key)) for key in state}
    return f"set lora.targets={json.dumps(sorted(layers))}"


def exact(number: float) -> str:
    """The shortest text that reads back as exactly the same number."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
