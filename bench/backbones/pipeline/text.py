"""Loading a pipeline's text encoders and tokenizers, without its network and VAE."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bench.backbones.pipeline_files import index_of, says_null
from bench.backbones.pipeline_parts import not_loaded, part_of
from bench.errors import DamagedError
from bench.weights.checkpoints import refuse_stand_ins, require_tokenizer


def load_text(
    source: str,
    home: str,
    pipeline: str,
    encoders: Mapping[str, str],
    tokenizers: tuple[str, ...],
    parts: Mapping[str, torch.nn.Module | None],
    dtype: torch.dtype,
) -> Any:
    """diffusers' pipeline of a class around some parts, with tokenizers and text encoders but no VAE.

    `encoders` maps folders to classes of transformers; a part that is None is left out. `source` is for messages.
    Raises MissingError for missing files, and DamagedError for files that are corrupt or do not match.
    """
    import diffusers
    import transformers

    parts = {**parts, "vae": None}
    if Path(home).is_dir():
        require_tokenizers(Path(home), tokenizers, without=parts)
    try:
        for name, kind in encoders.items():
            if name not in parts:
                model = getattr(transformers, kind)
                parts[name] = part_of(model, home, name, dtype=dtype, ignore_mismatched_sizes=True)
        found = getattr(diffusers, pipeline).from_pretrained(home, dtype=dtype, **parts)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise not_loaded(f"the text encoders of {source!r}", home, error) from error
    for name in encoders:
        if module := getattr(found, name):
            module.requires_grad_(False).eval()
    return found


def require_tokenizers(home: Path, names: tuple[str, ...], without: Container[str]) -> None:
    """Raise MissingError if a tokenizer in a pipeline's folder is incomplete, except for those in `without`.

    Raises DamagedError if the pipeline's index has null for a tokenizer that a text encoder needs.
    """
    index = index_of(str(home))
    for name in names:
        if name in without:
            continue
        if says_null(index, name):
            raise DamagedError(f"{home / 'model_index.json'} names no {name}, which one of its text encoders needs")
        folder = home / name
        if folder.is_dir():
            refuse_stand_ins(folder, name)
        require_tokenizer(folder)
