"""The backbone of a diffusers pipeline: frozen text encoders and VAE, and adapters on the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.backbones.diffusion_scheduler import DiffusionFields, diffusion_scheduler_in
from bench.backbones.pipeline.called import FamilyBackbone
from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.pipeline.source import (
    Configuration,
    fingerprint,
    home_of,
    is_file,
    require_parts,
    tokenizers_hash,
    validated,
)
from bench.backbones.pipeline.text import load_text
from bench.backbones.pipeline.with_vae import WithVae
from bench.backbones.pipeline_parts import not_loaded, part_of
from bench.backbones.scheduler_files import FILE as SCHEDULER
from bench.backbones.whole_models import require_kind
from bench.config.compute import PLAIN, Compute
from bench.errors import BenchError, UsageError
from bench.registry import broken, guarded
from bench.weights.checkpoints import read_config


class PipelineBackbone(FamilyBackbone, WithVae):
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
        network, vae = load_models(family, source, getattr(torch, compute.precision), told.without)
        self._of(family, told.fields, told.scheduler, device)
        self.encoders, self.padded, self.vae_kind = family.encoders, family.padded, family.vae
        self._told = told
        self._check_layers(network)
        words = tokenizers_hash(Path(home_of(family, source)), family.tokenizers)
        identity = fingerprint(family, source)
        super().__init__(family.name, source, network, vae, identity, device, compute, cache, words)
        side = told.side(family, compute.resolution)  # not checked: a default may be one that nobody draws at
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

    def exact_weights(self) -> dict[str, Tensor]:
        """As stored, in float32."""
        network, _ = load_models(self.family, self.source, torch.float32, self._told.without)
        return dict(network.named_parameters())

    def load_model(self, name: str, folder: Path) -> None:
        """As FlowBackbone. Raises UsageError for what the family does not run, and for what predicts something else."""
        if (folder / "config.json").is_file():
            require_kind(self._kind, folder)
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

    def latent_side(self, resolution: int | None) -> int:
        """Latent pixels along one side of images of so many pixels, or by default. Raises UsageError for too many."""
        return self._told.checked_side(self.family, resolution, self.compute)

    def _load_text(self) -> Any:
        family, without = self.family, (*self.family.optional, *self._told.without)
        return load_text(
            self.source, home_of(family, self.source), family.pipeline, family.encoders, family.tokenizers,
            {family.folder: self.transformer, **dict.fromkeys(without)}, self.dtype,
        )  # fmt: skip

    def _encode_one(self, pipeline: Any, prompt: str, negative: bool) -> dict[str, Tensor]:
        tokens = self.family.tokens(self.compute)
        encode = self.family.encode_negative if negative else self.family.encode
        tensors = guarded("family", self.family.name, encode, pipeline, prompt, tokens, self.device)
        if not isinstance(tensors, dict):
            raise broken("family", self.family.name, f"encodes a prompt as {type(tensors).__name__}, not as a dict")
        expected = self.family.prompt_shapes(self._told.fields, tokens)
        for name in {*tensors, *expected}:
            found = tuple(tensors[name].shape[1:]) if name in tensors else None
            known = expected.get(name)
            if name in self.padded and found and known:  # as long as the prompt
                found, known = found[1:], known[1:]
            if found != known:
                raise broken("family", self.family.name, f"encodes {name} as {found}, where prompt_shapes says {known}")
        return tensors


def load_models(family: PipelineFamily, source: str, dtype: torch.dtype, without: tuple[str, ...]) -> tuple[Any, Any]:
    """Load the network with type `dtype`, and the VAE always in float32; `without` are text encoders that it lacks.

    Raises MissingError with the cure for missing files, and UsageError or DamagedError for unusable ones.
    """
    import diffusers

    home = home_of(family, source)
    if Path(home).is_dir() and not is_file(source):
        require_parts(family, Path(home), without)
    try:
        network, vae = None, None
        if is_file(source):
            assert family.file is not None  # or no file would be of the family
            network, vae = family.file.load(Path(source), home, dtype)
        if network is None:
            network = part_of(getattr(diffusers, family.network), home, family.folder, dtype=dtype)
        return network, vae or part_of(getattr(diffusers, family.vae.kind), home, "vae", dtype=torch.float32)
    except (BenchError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # diffusers can raise almost anything on unexpected files
        raise not_loaded(repr(source), home, error) from error
