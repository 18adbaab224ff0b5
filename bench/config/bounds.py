"""Ranges that settings must lie in, so that a slip of the keyboard is refused before anything is allocated."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

Count = Annotated[int, Field(gt=0, le=100_000)]
"""How many prompts, pictures, states or steps: far above what anybody trains on at once."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Moderate = Annotated[float, Field(gt=0, le=1e6)]
"""A range, weight or scale of a method: what is far larger overflows in float32."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""Of a part of a loss; 0 leaves it out."""
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running average: 1 would never move."""
Guidance = Annotated[float, Field(ge=0, le=1000)]
"""A guidance scale; 1 is no guidance."""
Shift = Annotated[float, Field(ge=0.01, le=100)]
"""Of timesteps: published models have 1 to 12; far beyond, neighbouring sigmas are one number."""


def _is_device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", name):
        raise ValueError("it should be cpu, cuda (a GPU) or cuda:NUMBER")
    return name


def _are_targets(names: tuple[str, ...]) -> tuple[str, ...]:
    if not all(name.strip() for name in names):
        raise ValueError("a layer's name is empty")
    if len(set(names)) != len(names):
        raise ValueError("a layer is named twice")
    return names


DeviceName = Annotated[str, AfterValidator(_is_device)]
Targets = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_are_targets)]
"""Endings of layers' names."""
