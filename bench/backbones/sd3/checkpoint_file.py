"""SD3 checkpoints in one .safetensors file, in Stability's or diffusers' layout, inspected by their headers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backbones.pipeline.family import SingleFile
from bench.backbones.pipeline_files import config_file
from bench.backbones.sd3.published import DEFAULT, PUBLISHED
from bench.errors import BenchError, DamagedError, UsageError, one_line
from bench.lazy import torch
from bench.weights.checkpoints import read_config, require_model
from bench.weights.frozen import SAVED_WITH, UNPLACED, first_of

if TYPE_CHECKING:
    from torch import Tensor, nn

TRANSFORMER, VAE = "model.diffusion_model.", "first_stage_model."
OTHERS = (VAE, "vae.", "text_encoders.", "text_encoder", "cond_stage_model.", "conditioner.")
"""Prefixes of tensors outside the transformer; text encoders are never read from a single file."""
BLOCKS = (f"{TRANSFORMER}joint_blocks.", "joint_blocks.")
"""Prefixes of an SD3 transformer's blocks in Stability's layout."""
DIFFUSERS, POOLED = "transformer_blocks.", "time_text_embed.text_embedder."
"""Prefixes of the blocks and of the pooled prompt's embedding in diffusers' layout; many families have the first."""
NOT_SD3 = ("single_transformer_blocks.", "controlnet_blocks.")
"""Prefixes that FLUX and ControlNets have in addition."""
LORA = ("lora_A", "lora_B", "lora_down", "lora_up", "lora.down", "lora.up")


class CheckpointFile(SingleFile):
    """The transformer of an SD3 model, and perhaps its VAE. Text encoders are never read from it."""

    def home(self, path: Path) -> str:
        """The published model with as many blocks, or else SD3.5-Medium."""
        from safetensors import SafetensorError

        try:
            blocks = _blocks(_names(str(path)))
        except (SafetensorError, OSError):  # `check` says why
            return DEFAULT
        same = (address for address, known in PUBLISHED.items() if known.network["num_layers"] == blocks)
        return next(same, DEFAULT)

    def recognises(self, path: Path) -> bool:
        """By the names of its tensors."""
        return is_checkpoint(path)

    def check(self, path: Path) -> None:
        """As `require_checkpoint`."""
        require_checkpoint(str(path))

    def load(self, path: Path, home: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module | None]:
        """By diffusers' own conversion, once every tensor is known to have a place."""
        from diffusers import AutoencoderKL, SD3Transformer2DModel

        file = str(path)
        require_checkpoint(file)
        try:
            told = [read_config(config_file(home, part)) for part in ("transformer", "vae")]
            with_vae = has_vae(file)
            require_places(file, told[0], told[1] if with_vae else None)
            transformer = SD3Transformer2DModel.from_single_file(
                file, subfolder="transformer", dtype=dtype, config=home
            )
            if not with_vae:
                return transformer, None
            return transformer, AutoencoderKL.from_single_file(file, subfolder="vae", dtype=torch.float32, config=home)
        except (BenchError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # diffusers can raise almost anything on unexpected files
            cause = one_line(error)
            if isinstance(error, KeyError):
                cause = f"it lacks {cause}"
            elif isinstance(error, NotImplementedError):  # from torch, for tensors left on the meta device
                cause = f"it lacks tensors that the configuration in {home} requires"
            raise UsageError(f"{path} is not an SD3 checkpoint that diffusers can read: {cause}") from error


def require_checkpoint(file: str) -> None:
    """Raise MissingError, DamagedError or UsageError unless a file holds an SD3 transformer that can be read."""
    path = Path(file)
    require_model(path, "SD3 checkpoint", unread=tuple(prefix for prefix in OTHERS if prefix != VAE))
    names = _names(file)
    adapted = next((name for name in names if any(part in name for part in LORA)), None)
    if adapted:
        cause = f"it is a LoRA adapter (it holds {adapted}): use --adapter"
        raise UsageError(f"{file} is not a valid SD3 checkpoint: {cause}")
    if not _are_sd3(names):
        holds = f"it holds {first_of(sorted(names))}" if names else "it is empty"
        raise UsageError(f"{file} is not a valid SD3 checkpoint: it holds no SD3 transformer; {holds}")


def is_checkpoint(path: Path) -> bool:
    """Whether a file seems to hold an SD3 transformer, by the names of its tensors; False for a damaged file."""
    from safetensors import SafetensorError

    try:
        return _are_sd3(_names(str(path)))
    except (SafetensorError, OSError):
        return False


def _are_sd3(names: list[str]) -> bool:
    if any(name.startswith(NOT_SD3) for name in names):
        return False
    in_diffusers = all(any(name.startswith(prefix) for name in names) for prefix in (DIFFUSERS, POOLED))
    return in_diffusers or any(name.startswith(BLOCKS) for name in names)


def has_vae(file: str) -> bool:
    """Whether a single file holds a VAE, under Stability's prefix."""
    return any(name.startswith(VAE) for name in _names(file))


def require_places(file: str, transformer: dict, vae: dict | None) -> None:
    """Raise DamagedError unless a file holds exactly the tensors of models with these configurations.

    diffusers would silently ignore superfluous tensors and load a different model. The check passes tensors on the meta
    device through diffusers' own conversion, whose errors about missing layers pass through.
    """
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from diffusers.loaders import single_file_utils as theirs

    tensors = _shapes(file)
    made = tensors
    unused: Iterable[str] = ()
    # diffusers reads a file in its own layout without conversion, and expects nothing but the transformer in it.
    if not any(name.startswith(DIFFUSERS) for name in tensors):
        own = {name: t for name, t in tensors.items() if name.startswith(TRANSFORMER)}
        own = own or {name: t for name, t in tensors.items() if not name.startswith(OTHERS)}
        made = theirs.convert_sd3_transformer_checkpoint_to_diffusers(own)
        unused = own  # the conversion removes each tensor that it uses
    _compare(made.keys(), _places(SD3Transformer2DModel, transformer), unused, file)
    if vae is not None:
        own = {name: t for name, t in tensors.items() if name.startswith(VAE)}
        made = theirs.convert_ldm_vae_checkpoint(own, vae)
        # This conversion removes nothing; a converted tensor is the original or a view of it.
        used = {id(t if t._base is None else t._base) for t in made.values()}
        unused = {name for name, t in own.items() if id(t) not in used}
        _compare(made.keys(), _places(AutoencoderKL, vae), unused, file)


def _compare(held: Iterable[str], places: set[str], unused: Iterable[str], file: str) -> None:
    if lacks := sorted(places.difference(held)):
        raise DamagedError(f"{file} lacks the tensor {first_of(lacks)}, which its config.json requires")
    if extra := sorted({*held, *unused} - places):
        raise DamagedError(f"{file} {UNPLACED} {first_of(extra)}: {SAVED_WITH}")


def _places(model_class, config: dict) -> set[str]:
    """Names of the tensors of a model with this configuration."""
    with torch.device("meta"):
        return set(model_class.from_config(config).state_dict())


def _blocks(names: list[str]) -> int:
    """Number of an SD3 transformer's blocks."""
    lists = (*BLOCKS, DIFFUSERS)
    return len({name.removeprefix(part).partition(".")[0] for name in names for part in lists if name.startswith(part)})


def _names(file: str) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def _shapes(file: str) -> dict[str, Tensor]:
    """A file's tensors on the meta device, without content."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
