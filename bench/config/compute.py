"""How a backbone computes: size of pictures, precision, and what is traded for memory (this file imports no torch)."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bench.config.settings import Settings


class Compute(Settings):
    """Settings of the forward and backward pass; adapters and optimiser are float32 whatever is said here."""

    RESULT: ClassVar[tuple[str, ...]] = ("resolution", "precision", "max_sequence_length")
    """Settings that results depend on; the others move their last bits."""

    resolution: Annotated[int, Field(gt=0)] | None = None
    """Pixels a side; None: the model's own."""
    max_sequence_length: Annotated[int, Field(gt=0, le=512)] | None = None
    """T5 tokens of a prompt, by diffusers' name. None: 128, as Flow-GRPO and its successors train and evaluate; a
    pipeline that nobody tells draws with 256, which changes latents of the same noise by about 2%."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Frozen weights and autocast; float16 trains with a dynamic loss scale."""
    batch: Annotated[int, Field(gt=0)] | None = None
    """Latents per forward without gradients; None: all that are asked for at once."""
    gradient_checkpointing: bool = False
    """Forget a block's activations and compute them again in the backward pass: about a tenth of their
    memory, half as many operations again."""
    compile: bool = False
    """torch.compile on every transformer block."""
    decode: Literal["whole", "sliced", "tiled"] = "whole"
    """Latents -> pictures: the batch at once, picture by picture, or (approximately) tile by tile."""
    offload_text_encoders: bool = False
    """Keep text encoders in host memory while they do not encode."""

    def record(self) -> dict[str, Any]:
        """Plain data for records; settings that came later than records are left out at their defaults."""
        return self.model_dump(exclude={"max_sequence_length"} if self.max_sequence_length is None else None)


PLAIN = Compute()
