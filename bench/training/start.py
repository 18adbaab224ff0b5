"""Where a student starts: an adapter whose tensors can be its own, and what to set so that they can."""

import json
import math

from pydantic import ValidationError
from torch import Tensor

from bench.backbones.adapter_config import equal_alpha
from bench.backbones.adapters import ending, read_adapter
from bench.config.settings import first_problem
from bench.config.spec import LoraSpec
from bench.errors import UsageError
from bench.weights.hub import adapter_folder


def read_start(lora: LoraSpec, own: tuple[str, ...] | None) -> dict[str, Tensor]:
    """Tensors of the adapter `lora.start`, which are the student's own where both have one scale and the same layers.

    `own`: what the backbone puts an adapter on where `lora.targets` does not say, if that is known.

    Raises UsageError for one of another rank, strength, layers or kind.
    """
    assert lora.start  # called where one is set
    config, state = read_adapter(adapter_folder(lora.start))
    for field in ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias"):
        if getattr(config, field):
            raise UsageError(f"the adapter {lora.start} has {field}, which a student has not: it cannot start there")
    alpha = equal_alpha(config)
    try:
        LoraSpec(rank=config.r, alpha=alpha)
    except ValidationError as error:
        cause = first_problem(error, LoraSpec, ("lora",))
        raise UsageError(f"a student cannot be like the adapter {lora.start}: {cause}") from error
    if config.r != lora.rank or not math.isclose(alpha, lora.alpha, rel_tol=1e-12):
        stabilised = " (its rank-stabilised scale under the usual rule)" if config.use_rslora else ""
        raise UsageError(
            f"the adapter {lora.start} has rank {config.r} and alpha {exact(alpha)}{stabilised}: "
            f"set lora.rank={config.r} and lora.alpha={exact(alpha)}"
        )
    targets = tuple(f".{target}" for target in lora.targets or own or ())
    strays = [key for key in sorted(state) if not f".{layer_of(key)}".endswith(targets)]
    if targets and strays:
        raise UsageError(f"the adapter {lora.start} changes {layer_of(strays[0])}: {targets_of(state)}")
    return state


def layer_of(key: str) -> str:
    """The layer that an adapter's tensor belongs to."""
    return key.partition(".lora_")[0]


def targets_of(state: dict[str, Tensor]) -> str:
    """What to set for a student with the layers of an adapter."""
    layers = {ending(layer_of(key)) for key in state}
    return f"set lora.targets={json.dumps(sorted(layers))}"


def exact(number: float) -> str:
    """The shortest text that reads back as the same number."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)
