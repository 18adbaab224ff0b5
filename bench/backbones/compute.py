"""How a backbone computes: size of pictures, precision, and what is traded for memory (this file imports no torch)."""

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


class Compute(BaseModel):
    """Settings of the forward and backward pass; adapters and optimiser are float32 whatever is said here."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    RESULT: ClassVar[tuple[str, ...]] = ("resolution", "precision")
    """Settings that results depend on; the others move their last bits."""

    resolution: Annotated[int, Field(gt=0)] | None = None
    """Pixels a side; None: the model's own."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Frozen weights and autocast; float16 trains with a dynamic loss scale."""
    batch: Annotated[int, Field(gt=0)] | None = None
    """Latents per forward without gradients; None: all that are asked for at once."""
    gradient_checkpointing: bool = False
    """Forget a block's activations and compute them again in the backward pass: less memory, a third more time."""
    compile: bool = False
    """torch.compile on every transformer block."""
    decode: Literal["whole", "sliced", "tiled"] = "whole"
    """Latents -> pictures: the batch at once, picture by picture, or (approximately) tile by tile."""
    offload_text_encoders: bool = False
    """Keep text encoders in host memory while they do not encode."""


PLAIN = Compute()
