"""What a family of diffusers pipelines says about itself. Everything else about loading and running one is shared.

A family is one file with a subclass of PipelineFamily. It must not import torch or diffusers when it is imported, since
every command asks which families there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel

from bench.backbones.autoencoder_kl import KL
from bench.backbones.diffusion_scheduler import KINDS, DiffusionFields
from bench.backbones.flow_scheduler import DPM, EULER, SchedulerFields, shift_for
from bench.backbones.guidance import classifier_free
from bench.backbones.vae import Vae
from bench.sampler.levels import FlowLevels, Levels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bench.backbones.conditioning import Conditioning
    from bench.config.compute import Compute


@dataclass(frozen=True)
class Published:
    """A published model, as far as it is known without downloading it."""

    network: dict[str, Any]
    """The network's configuration."""
    vae: dict[str, Any]
    """The VAE's configuration."""
    scheduler: dict[str, Any]
    """The scheduler's configuration."""
    frozen: dict[str, int]
    """Parameters of each text encoder and of the VAE, by folder."""
    options: dict[str, Any] = field(default_factory=dict)
    """The options in its model_index.json."""


class SingleFile(ABC):
    """How a family reads models that are one .safetensors file. Their other parts are in a pipeline's folder beside the
    file, or else in a published pipeline."""

    @abstractmethod
    def home(self, path: Path) -> str:
        """Address of that published pipeline."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether a file seems to be of this family, without an error for a damaged one."""

    @abstractmethod
    def check(self, path: Path) -> None:
        """Raise MissingError, DamagedError or UsageError unless a file can be read."""

    @abstractmethod
    def load(self, path: Path, home: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module | None]:
        """The network with type `dtype`, and the VAE in float32 if the file has one.

        `home` is the folder or hub id of the pipeline. Raises as `check`.
        """


class PipelineFamily(ABC):
    """Pipelines whose network is called in the same way."""

    name: ClassVar[str]
    pipeline: ClassVar[str]
    """Name of the class in diffusers."""
    network: ClassVar[str]
    """Class of the network in diffusers."""
    network_before: ClassVar[tuple[str, ...]] = ()
    """Former names of that class, which older pipelines have in their files."""
    folder: ClassVar[str] = "transformer"
    """Folder of the network: transformer or unet."""
    encoders: ClassVar[Mapping[str, str]]
    """Folder of a text encoder -> its class in transformers. A pipeline whose files name another is refused."""
    tokenizers: ClassVar[tuple[str, ...]]
    """Folders of the tokenizers."""
    nullable: ClassVar[Mapping[str, str]] = {}
    """Folder of a text encoder that a model_index.json may say a pipeline is without -> that of its tokenizer."""
    fields: ClassVar[type[BaseModel]]
    """The fields of the network's configuration that the family reads, with diffusers' defaults. A field of type
    Literal pins what the family assumes: a pipeline with another value is refused."""
    vae: ClassVar[Vae] = KL
    """The class of its VAE."""
    targets: ClassVar[tuple[str, ...]]
    """Suffixes of the names of the layers that published settings adapt."""
    block_lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    """The network's lists of repeated blocks, and single blocks like those."""
    padded: ClassVar[tuple[str, ...]] = ()
    """Tensors of a prompt that are as long as it is, which batches pad (Conditioning.lengths)."""
    checkpoints: ClassVar[bool] = True
    """Whether the network has diffusers' gradient checkpointing."""
    resolution: ClassVar[int | None] = 512
    """Image pixels along one side by default, for models of published size; None: the model's own."""
    text_tokens: ClassVar[int]
    """Tokens of an encoded prompt where compute.max_sequence_length is not set."""
    diffusion: ClassVar[bool] = False
    """Whether the network was trained on a variance-preserving diffusion process and not on rectified flow."""
    schedulers: ClassVar[tuple[str, ...]] = ()
    """Classes of schedulers that the pipeline may have; empty: FlowMatchEulerDiscreteScheduler, or with `diffusion` all
    that are followed."""
    table: ClassVar[str] = "once"
    """The table of sigmas that a pipeline of rectified flow asks its scheduler for (bench/sampler/schedule.py)."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Further parts of the pipeline that are not loaded."""
    published: ClassVar[Mapping[str, Published]] = {}
    """Address on the hub -> what is known about it."""
    file: ClassVar[SingleFile | None] = None
    """How its models are read from one file; None: they are not."""
    recipes: ClassVar[Path | None] = None
    """Folder of recipes for its models of published size (Descriptor.recipes)."""
    batch: ClassVar[int] = 16
    """Latents per forward pass without gradients by default, for models of published size."""

    @classmethod
    def followed(cls) -> tuple[str, ...]:
        """Classes of schedulers that its pipelines may have. Raises TypeError for those of another kind of network."""
        known = KINDS if cls.diffusion else (EULER, DPM)
        if foreign := [name for name in cls.schedulers if name not in known]:
            what = "a diffusion model" if cls.diffusion else "rectified flow (set diffusion = True for another)"
            raise TypeError(f"{cls.__name__} has schedulers {', '.join(foreign)}, which are not of {what}")
        return cls.schedulers or (KINDS if cls.diffusion else (EULER,))

    @abstractmethod
    def latent_channels(self, config: Any) -> int:
        """Channels of a latent; `config` are the `fields` of a network."""

    def latent_side(self, config: Any) -> int:
        """Latent pixels along one side where no resolution is set. Default: 128, 1024 image pixels with most VAEs."""
        return 128

    def patch(self, config: Any) -> int:
        """Latent pixels along one side of what the network sees as one token. Default: 2."""
        return 2

    def check(self, config: Any, side: int, tokens: int) -> None:  # noqa: B027 - most families refuse nothing
        """Raise UsageError if the network cannot take latents of `side` x `side`, or prompts of so many tokens.

        Called before anything is loaded, for the settings of a run. A side is always a multiple of `patch`.
        """

    def levels(self, config: Any, scheduler: SchedulerFields | DiffusionFields, side: int) -> Levels:
        """The noise levels for latents of `side` x `side`, by the pipeline's scheduler.

        Default: for rectified flow, a timestep shift by the number of tokens. Raises UsageError for a scheduler that
        the pipeline does not follow, such as one with dynamic shifting where it passes none.
        """
        if isinstance(scheduler, DiffusionFields):
            return scheduler.levels()
        shift = shift_for(scheduler, (side // self.patch(config)) ** 2)
        return FlowLevels(shift, scheduler.shift_terminal, scheduler.table or self.table)

    def tokens(self, compute: Compute) -> int:
        """Tokens of an encoded prompt, or what a longer one is truncated to."""
        return compute.max_sequence_length or self.text_tokens

    def guidance(self, config: Any, options: Mapping[str, Any]) -> float:
        """The student's guidance scale, in training and evaluation, where none is set. Default: without guidance.

        `options` is the pipeline's model_index.json, in which some say that they are distilled.
        """
        return 1.0

    def embedded_guidance(self, config: Any) -> bool:
        """Whether the network takes the guidance scale as an input; default: it needs classifier-free guidance."""
        return False

    @abstractmethod
    def encode(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """Name -> a prompt's encoding [1, ...] by diffusers' pipeline, which has text encoders but no VAE.

        Its shape must not depend on the prompt, but for the second dimension of tensors that `padded` names.
        """

    def encode_negative(self, pipeline: Any, prompt: str, tokens: int, device: torch.device) -> dict[str, Tensor]:
        """The encoding of what guidance guides away from, of the same shapes: empty unless the user sets one.

        Default: as a prompt.
        """
        return self.encode(pipeline, prompt, tokens, device)

    @abstractmethod
    def prompt_shapes(self, config: Any, tokens: int) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what `encode` returns, without the batch."""

    @abstractmethod
    def arguments(self, config: Any, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """The network's arguments for latents x [B, C, h, w] at noise levels sigma [B].

        For a diffusion model x is scaled to variance 1, and `sigma_B` holds the timesteps, from 0 to 999. x and the
        conditioning are in the network's type, but for masks and other integers. sigma is in float32 at any precision
        and should stay so: the network is called under autocast. The conditioning also has `guidance` [B], in float32,
        if the network takes it as an input. `config` are the fields of the network that is called, which may be a
        teacher's.
        """

    def guided(self, v_cond: Tensor, v_uncond: Tensor, guidance: float) -> Tensor:
        """The guided velocity of those with and without the prompt. Default: classifier-free guidance."""
        return classifier_free(v_cond, v_uncond, guidance)

    @abstractmethod
    def prediction(self, config: Any, output: Any, x: Tensor) -> Tensor:
        """What the network's output means: the velocity eps - x0 [B, C, h, w], of the shape of x.

        For a diffusion model: what its scheduler's prediction_type says, such as the noise. `output` is the first thing
        that the network returns with return_dict=False.
        """
