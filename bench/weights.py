"""Frozen models by folder or hub id: loading them, and what their weights hash to."""

from functools import cache
from pathlib import Path

import torch

from bench.devices import check_device
from bench.errors import MissingError, one_line, unknown
from bench.hashing import content_hash

PRECISIONS = ("float32", "bfloat16", "float16")
FILES = ("model.safetensors", "pytorch_model.bin")
CURE = "name a local folder in transformers' format, or make the hub reachable and accept the model's licence"


@cache
def weights_hash(source: str) -> str:
    """Content hash of a transformers model's weights; fetches those of a hub id.

    Raises MissingError for a folder without weights, and for a hub id that cannot be reached.
    """
    from transformers.utils import cached_file

    try:
        for name in FILES:
            if path := cached_file(source, name, _raise_exceptions_for_missing_entries=False):
                return content_hash([Path(path)])
    except OSError as error:
        raise MissingError(f"no model at {source!r}: {one_line(error)}; {CURE}") from error
    raise MissingError(f"no weights at {source!r}: neither {' nor '.join(FILES)}; {CURE}")


def weights_name(source: str, precision: str) -> str:
    """`weights_hash`, and the precision if it is not float32, which changes scores too."""
    return weights_hash(source) + ("" if precision == "float32" else f"-{precision}")


def load_frozen(model_class, source: str, device: str, what: str, precision: str = "float32"):
    """A transformers model without gradients. Raises MissingError naming what is not where, UsageError for another
    precision than float32, bfloat16 and float16 or a device that is no device."""
    from transformers.utils.logging import disable_progress_bar

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    check_device(device, what, "set its device to cpu")
    disable_progress_bar()  # its bar would tear ours
    try:
        model = model_class.from_pretrained(source, dtype=getattr(torch, precision))
    except (OSError, ValueError) as error:
        raise MissingError(f"no {what} at {source!r}: {one_line(error)}; {CURE}") from error
    return model.eval().requires_grad_(False).to(device)


def load_processor(source: str):
    """The tokenizer and the image processor (on PIL pictures) of a CLIP model. Raises MissingError likewise."""
    from transformers import AutoImageProcessor, AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source), AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        raise MissingError(f"no tokenizer and image processor at {source!r}: {one_line(error)}; {CURE}") from error
