"""Bounded types for settings, so that a typing error is rejected before anything is allocated."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

Count = Annotated[int, Field(gt=0, le=100_000)]
"""A number of prompts, images, states or steps; the upper bound is far above any practical batch."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0."""
Moderate = Annotated[float, Field(gt=0, le=1e6)]
"""A range, weight or scale of a method; much larger values overflow in float32."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""The weight of a term of a loss; 0 disables the term."""
UnitInterval = Annotated[float, Field(ge=0, le=1)]
"""A number from 0 to 1, both included."""
Fraction = Annotated[float, Field(gt=0, le=1)]
"""A number above 0 and up to 1."""
Decay = Annotated[float, Field(ge=0, lt=1)]
"""The decay of a running average; at 1 the average would never change."""
Guidance = Annotated[float, Field(ge=0, le=1000)]
"""A guidance scale; 1 means no guidance."""
Shift = Annotated[float, Field(ge=0.01, le=100)]
"""A timestep shift. Published models use 1 to 12; far outside that range neighbouring sigmas become equal."""


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
"""`cpu`, `cuda` or `cuda:NUMBER`."""
Targets = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_are_targets)]
"""Suffixes of the names of the layers that get a LoRA adapter."""
