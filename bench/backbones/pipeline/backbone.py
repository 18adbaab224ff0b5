"""The backbone of a diffusers pipeline: frozen text encoders and VAE, and adapters on the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bench.backbones.conditioning import Conditioning
from bench.backbones.diffusion import Diffusion
from bench.backbones.diffusion_scheduler import DiffusionFields, diffusion_scheduler_in
from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.pipeline.network import pipeline_size
from bench.backbones.pipeline.source import Configuration, fingerprint, home_of, tokenizers_hash, validated
from bench.backbones.pipeline.text import load_text
from bench.backbones.pipeline.with_vae import WithVae
from bench.backbones.pipeline_files import require_whole
from bench.backbones.pipeline_parts import not_loaded, part_of
from bench.backbones.scheduler_files import FILE as SCHEDULER
from bench.backbones.size import Size
from bench.config.compute import PLAIN, Compute
from bench.errors import BenchError, UsageError
from bench.registry import broken, guarded
from bench.weights.checkpoints import read_config


class PipelineBackbone(WithVae):
    """A pipeline of any PipelineFamily."""

    def __init__(
        self,
        family: PipelineFamily,
        source: str,
        told: Configuration,
        device: str,
        compute: Compute = PLAIN,
        cache: Path | None = None,
    ):
        network, vae = load_models(family, source, getattr(torch, compute.precision))
        # FlowBackbone reads these while it is made.
        self.family, self.targets, self.encoders = family, family.targets, family.encoders
        self.folder = family.folder
        self._told = told
        self._check_layers(network)
        self.padded, self.vae_kind = family.padded, family.vae
        self._of_teachers: dict[nn.Module, Any] = {}
        self.embedded_guidance = family.embedded_guidance(told.fields)
        self.diffusion: Diffusion | None = None
        if isinstance(told.scheduler, DiffusionFields):
            self.diffusion = Diffusion(told.scheduler.levels(), told.scheduler.prediction_type, device)
        words = tokenizers_hash(Path(home_of(source)), family.tokenizers)
        super().__init__(family.name, source, network, vae, fingerprint(source), device, compute, cache, words)
        side = told.side(family, compute.resolution)
        self.latent_shape = (family.latent_channels(told.fields), side, side)

    def _check_layers(self, network: nn.Module) -> None:
        """Raise MissingError if the family names layers or lists of blocks that its network does not have."""
        layers = [name for name, _ in network.named_modules()]
        for target in self.family.targets:
            if not any(name == target or name.endswith(f".{target}") for name in layers):
                raise broken(
                    "family", self.family.name, f"names the target {target!r}, which its network does not have"
                )
        for name in self.family.block_lists:
            if not hasattr(network, name):
                raise broken("family", self.family.name, f"names the blocks {name!r}, which its network does not have")

    def blocks(self, network: Any) -> list[nn.Module]:
        """The repeated blocks of all lists."""
        found = (getattr(network, name) for name in self.family.block_lists)
        blocks = (block for part in found for block in (part if isinstance(part, nn.ModuleList) else [part]))
        return [block for block in blocks if block is not None]  # a UNet may have no middle

    def predict(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity eps - x0 [B, C, h, w] without classifier-free guidance."""
        state, level_B = self.diffusion.inputs(x, sigma_B) if self.diffusion else (x, sigma_B)
        state = state.to(self.dtype)
        tensors = {name: self._typed(name, tensor) for name, tensor in conditioning.tensors.items()}
        fields = self._fields_of(network)
        given = Conditioning(tensors, conditioning.lengths)
        arguments = guarded("family", self.family.name, self.family.arguments, fields, state, level_B, given)
        output = network(**arguments, return_dict=False)[0]
        predicted = guarded("family", self.family.name, self.family.prediction, fields, output, state)
        if predicted.shape != x.shape:
            raise broken(
                "family", self.family.name, f"returns a prediction {tuple(predicted.shape)} at {tuple(x.shape)}"
            )
        return self.diffusion.velocity(predicted, x, sigma_B) if self.diffusion else predicted

    def _fields_of(self, network: nn.Module) -> Any:
        """The family's fields of a network: the own one, or a teacher's that is a whole model."""
        if network is self.transformer:
            return self._told.fields
        if network not in self._of_teachers:
            self._of_teachers[network] = self.family.fields.model_validate(dict(cast(Any, network).config))
        return self._of_teachers[network]

    def _typed(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of encoded prompts in the network's type; masks and the guidance scale stay as they are."""
        return tensor if name == "guidance" or not tensor.is_floating_point() else tensor.to(self.dtype)

    def load_model(self, name: str, folder: Path) -> None:
        """As FlowBackbone. Raises UsageError for what the family does not run, and for what predicts something else."""
        if (folder / "config.json").is_file():
            validated(str(folder), read_config(folder / "config.json"), self.family.fields)
        if self.diffusion and (folder.parent / SCHEDULER).is_file():
            own, found = self._told.scheduler, diffusion_scheduler_in(folder.parent / SCHEDULER)
            assert isinstance(own, DiffusionFields)
            for what in ("prediction_type", "betas"):
                if getattr(own, what) != getattr(found, what):
                    raise UsageError(
                        f"{folder.parent / SCHEDULER}: {what} is {getattr(found, what)}, but the student's is "
                        f"{getattr(own, what)}: a teacher predicts what the student does, at the same noise levels"
                    )
        super().load_model(name, folder)

    def latent_side(self, resolution: int) -> int:
        """Latent pixels along one side of images of so many pixels."""
        return self._told.side(self.family, resolution)

    def combined(self, v_cond: Tensor, v_uncond: Tensor, guidance: float) -> Tensor:
        """As the family combines them."""
        return self.family.guided(v_cond, v_uncond, guidance)

    def size(self, conditioning: Conditioning) -> Size:
        """Size of the network alone, for prompts as long as these."""
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in conditioning.tensors.items()}
        return pipeline_size(self.family, dict(cast(Any, self.transformer).config), self.latent_shape[1], shapes, {})

    def _load_text(self) -> Any:
        family = self.family
        return load_text(
            self.source, home_of(self.source), family.pipeline, family.encoders, family.tokenizers,
            {family.folder: self.transformer, **dict.fromkeys(family.optional)}, self.dtype,
        )  # fmt: skip

    def _encode_one(self, pipeline: Any, prompt: str, negative: bool) -> dict[str, Tensor]:
        tokens = self.family.tokens(self.compute)
        encode = self.family.encode_negative if negative else self.family.encode
        tensors = encode(pipeline, prompt, tokens, self.device)
        expected = self.family.prompt_shapes(self._told.fields, tokens)
        for name in {*tensors, *expected}:
            found = tuple(tensors[name].shape[1:]) if name in tensors else None
            known = expected.get(name)
            if name in self.padded and found and known:  # as long as the prompt
                found, known = found[1:], known[1:]
            if found != known:
                raise broken("family", self.family.name, f"encodes {name} as {found}, where prompt_shapes says {known}")
        return tensors


def load_models(family: PipelineFamily, source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load the network with type `dtype`, and the VAE always in float32.

    Raises MissingError with the cure for missing files, and DamagedError for corrupt ones.
    """
    import diffusers

    home = home_of(source)
    if Path(home).is_dir():
        # Text encoders are loaded later, and not at all if the cache has every prompt.
        for name in family.encoders:
            require_whole(Path(home) / name)
    try:
        network = part_of(getattr(diffusers, family.network), home, family.folder, dtype=dtype)
        return network, part_of(getattr(diffusers, family.vae.kind), home, "vae", dtype=torch.float32)
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # diffusers can raise almost anything on unexpected files
        raise not_loaded(repr(source), home, error) from error
