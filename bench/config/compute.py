"""How a backbone computes: image size, precision, and what it trades for memory. This file does not import torch."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from bench.config.settings import Settings


class Compute(Settings):
    """Settings of the forward and backward pass. Students and the optimiser are always float32."""

    RESULT: ClassVar[tuple[str, ...]] = ("resolution", "precision", "max_sequence_length", "negative_prompt")
    """Settings that results depend on. The others change results by rounding only."""

    resolution: Annotated[int, Field(gt=0)] | None = None
    """Width and height of an image in pixels; None means the model's default."""
    max_sequence_length: Annotated[int, Field(gt=0, le=512)] | None = None
    """Maximum number of tokens of a prompt in the longest text encoder (diffusers' name). None means 128, the length at
    which Flow-GRPO and its successors train and evaluate. The pipelines of diffusers default to 256 (SD3) or 512
    (FLUX.1); 256 changes SD3's latents from the same noise by about 2%."""
    negative_prompt: Annotated[str, Field(max_length=10_000)] = ""
    """What classifier-free guidance guides away from (diffusers' name), in training and evaluation, for the student,
    the base and all teachers."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the frozen weights and of autocast; float16 trains with a dynamic loss scale."""
    batch: Annotated[int, Field(gt=0)] | None = None
    """Maximum number of latents per forward pass without gradients; None means no limit."""
    gradient_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: about a tenth of the activation memory for half as many
    operations again."""
    compile: bool = False
    """Apply torch.compile to every transformer block."""
    decode: Literal["whole", "sliced", "tiled"] = "whole"
    """How latents are decoded into images: the batch at once, one image at a time, or tile by tile (approximate)."""
    offload_text_encoders: bool = False
    """Keep the text encoders in host memory while they are not in use."""
    offload_teachers: bool = False
    """Keep teachers that are whole models in host memory, but for the one in use."""
    shard: bool = False
    """Split the frozen weights over the processes of a run (FSDP2), those of teachers that are whole models too. Each
    process holds its part of them and one or two whole blocks at a time. The prompts of a task and update must be a
    multiple of the processes. Without effect in a single process."""

    @model_validator(mode="after")
    def _one_way_to_hold_teachers(self) -> "Compute":
        if self.shard and self.offload_teachers:
            raise ValueError("compute.shard splits the teachers over the processes too: leave out offload_teachers")
        return self

    def record(self) -> dict[str, Any]:
        """Plain data for records. Settings that were added after the first records are omitted at their defaults."""
        # Hashes of runs are taken over this record: a new key at its default would rename every stored run.
        later = {"max_sequence_length": None, "negative_prompt": "", "offload_teachers": False, "shard": False}
        return self.model_dump(exclude={name for name, default in later.items() if getattr(self, name) == default})


PLAIN = Compute()
"""The default settings."""
