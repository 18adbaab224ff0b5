"""The configuration of a LoRA adapter as peft's own LoraConfig; fields that cannot be honoured are rejected by name."""

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
    """The supported LoraConfig fields that change what saved tensors compute, with peft's defaults."""

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
    "lora_dropout",  # used in training only
    "eva_config", "corda_config", "loftq_config", "lora_ga_config",  # options of an initialisation, see START
    "megatron_core", "qalora_group_size", "runtime_config",  # options of other fields, which are rejected
    "fan_in_fan_out", "ensure_weight_tying",  # for layers that SD3 transformers do not have; peft ignores them too
})  # fmt: skip
"""Fields that do not change what saved tensors compute."""
START = "init_lora_weights"
HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base weights unchanged."""
REBASED = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that subtract the adapter's initial weights from the base."""
OFF: tuple[object, ...] = (None, False, "", [], {})
"""Values that mean that a field is unset, whatever its default."""


def lora_config(told: dict[str, Any], where: str) -> "LoraConfig":
    """Build peft's LoraConfig from an adapter's saved fields; `where` names their file in errors.

    Fields that only concern training (dropout, initialisation) are dropped, because the tensors are already trained.
    Raises UsageError naming a field that is unknown, invalid or not supported.
    """
    from peft import LoraConfig

    kind = told.get("peft_type", "LORA")
    if kind != "LORA":
        raise UsageError(f"{where}: peft_type is {shortened(kind)}; only LORA adapters are supported")
    refuse_start(told.get(START), where)
    defaults = {}
    for field in fields(LoraConfig):
        factory = field.default_factory
        defaults[field.name] = field.default if factory is MISSING else factory()
    # Any other field is harmless as long as it has peft's default value.
    for name, value in told.items():
        handled = name in Carried.model_fields or name in INERT or name == START
        if handled or value in OFF:
            continue
        if name not in defaults:
            raise UsageError(
                f"{where}: {name}={shortened(value)} is unknown to the installed peft {version('peft')}: "
                "upgrade peft if a newer version wrote the adapter"
            )
        if value != defaults[name]:
            raise UsageError(
                f"{where}: {name}={shortened(value)} is not supported: it changes what the adapter computes"
            )
    given = {name: told[name] for name in Carried.model_fields if name in told}
    try:
        carried = Carried.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"{where} is not a LoRA configuration: {first_problem(error, Carried)}") from error
    if not carried.target_modules:
        raise UsageError(f"{where} is not a LoRA configuration: target_modules names no layers")
    # peft looks layers up in both patterns, so a null in the saved file must become an empty one.
    patterns = {"rank_pattern": carried.rank_pattern or {}, "alpha_pattern": carried.alpha_pattern or {}}
    try:
        return LoraConfig(**carried.model_dump() | patterns)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where} is not a LoRA configuration: {one_line(error)}") from error


def refuse_start(value: Any, where: str) -> None:
    """Raise UsageError for an initialisation whose saved tensors only make sense with a modified base."""
    named = f"{where}: {START}={shortened(value)}"
    if str(value).lower().startswith(REBASED):
        raise UsageError(
            f"{named} subtracts the adapter's initial weights from the base, so these tensors only fit that modified "
            "base: save it again with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if value == "loftq":
        raise UsageError(f"{named} is not supported: these tensors only fit the quantised base")
    if value not in HARMLESS_STARTS:
        raise UsageError(f"{named} is unknown")


def config_record(config: "LoraConfig") -> dict[str, Any]:
    """The fields to save with an adapter: only those that define it.

    The same adapter therefore has the same file, and the same hash, under every version of peft.
    """

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else value

    always = ("r", "lora_alpha", "target_modules")
    kept = {}
    for name, field in Carried.model_fields.items():
        value = plain(getattr(config, name))
        is_set = value not in (field.default, {})
        if is_set or name in always:
            kept[name] = value
    return {"peft_type": "LORA"} | kept | {"bias": "none"}


def equal_alpha(config: "LoraConfig") -> float:
    """The lora_alpha that gives the adapter's strength under peft's usual scale, alpha / r.

    Rank-stabilised adapters (arXiv 2312.03732) scale by alpha / sqrt(r) instead. Layers with an alpha_pattern or a
    rank_pattern are not covered.
    """
    return config.lora_alpha * math.sqrt(config.r) if config.use_rslora else config.lora_alpha
