"""What is said of an adapter beside its tensors, as peft's own LoraConfig; what cannot be done is refused by name."""

import math
from dataclasses import MISSING, fields
from importlib.metadata import version
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field, ValidationError

from bench.config.settings import first_problem
from bench.errors import UsageError, one_line

if TYPE_CHECKING:
    from peft import LoraConfig

Rank = Annotated[int, Field(gt=0)]
Alpha = Annotated[float, AllowInfNan(False)]
Names = str | list[str] | None


class Carried(BaseModel):
    """The fields of LoraConfig that change what saved tensors compute, and that are carried out; peft's defaults."""

    model_config = ConfigDict(strict=True)

    r: Rank = 8
    lora_alpha: Alpha = 8
    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: Names = None
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False


INERT = frozenset({
    "peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout",  # of training
    "eva_config", "corda_config", "loftq_config", "lora_ga_config",  # of initialisation, see START
    "megatron_core", "qalora_group_size", "runtime_config",  # of other fields, which are refused
    "fan_in_fan_out", "ensure_weight_tying",  # of layers that no SD3 transformer has: peft itself passes over them
})  # fmt: skip
"""Fields that do not change what saved tensors compute."""
START = "init_lora_weights"
HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base as it is."""
REBASED = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that take the adapter's first weights out of the base."""
OFF: tuple[object, ...] = (None, False, "", [], {})


def lora_config(told: dict[str, Any], where: str) -> "LoraConfig":
    """peft's configuration of a LoRA adapter from its fields. Raises UsageError naming the field that cannot be done.

    What only concerns training (dropout, initialisation) is left out: the tensors are there.
    """
    from peft import LoraConfig

    kind = told.get("peft_type", "LORA")
    if kind != "LORA":
        raise UsageError(f"{where}: peft_type is {shortened(kind)}; only LORA adapters are taken")
    refuse_start(told.get(START), where)
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(LoraConfig)}
    for name, value in told.items():
        if name in Carried.model_fields or name in INERT or name == START or value in OFF:
            continue
        if name not in defaults:
            raise UsageError(
                f"{where}: {name}={shortened(value)} is unknown to the installed peft {version('peft')}: "
                "upgrade peft if it was written by a newer one"
            )
        if value != defaults[name]:
            raise UsageError(
                f"{where}: {name}={shortened(value)} is not supported: it changes what the adapter computes"
            )
    try:
        carried = Carried.model_validate({name: told[name] for name in Carried.model_fields if name in told})
    except ValidationError as error:
        raise UsageError(f"{where} is not a LoRA configuration: {first_problem(error, Carried)}") from error
    if not carried.target_modules:
        raise UsageError(f"{where} is not a LoRA configuration: target_modules names no layers")
    patterns = {"rank_pattern": carried.rank_pattern or {}, "alpha_pattern": carried.alpha_pattern or {}}
    try:
        return LoraConfig(**carried.model_dump() | patterns)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where} is not a LoRA configuration: {one_line(error)}") from error


def refuse_start(value: Any, where: str) -> None:
    """Raise UsageError for an initialisation that the tensors cannot be understood without."""
    named = f"{where}: {START}={shortened(value)}"
    if str(value).lower().startswith(REBASED):
        raise UsageError(
            f"{named} took the first weights out of the base, so these tensors fit that changed base alone: save the "
            "adapter once more with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if value == "loftq":
        raise UsageError(f"{named} is not supported: these tensors fit the quantised base alone")
    if value not in HARMLESS_STARTS:
        raise UsageError(f"{named} is unknown")


def config_record(config: "LoraConfig") -> dict[str, Any]:
    """The fields of an adapter that is saved: those that make it what it is, and no more, so that the same adapter
    has the same file, and the same hash, under every version of peft."""
    plain = lambda value: sorted(value) if isinstance(value, set) else value  # noqa: E731
    told = {name: plain(getattr(config, name)) for name in Carried.model_fields}
    always = ("r", "lora_alpha", "target_modules")
    unset = lambda name: told[name] in (Carried.model_fields[name].default, {})  # noqa: E731
    return {"peft_type": "LORA"} | {k: v for k, v in told.items() if k in always or not unset(k)} | {"bias": "none"}


def equal_alpha(config: "LoraConfig") -> float:
    """The lora_alpha that gives an adapter's strength, of layers without a pattern of their own, under peft's usual
    scale alpha / r; rank-stabilised adapters (arXiv 2312.03732) have alpha / sqrt(r)."""
    return config.lora_alpha * math.sqrt(config.r) if config.use_rslora else config.lora_alpha
