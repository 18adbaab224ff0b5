"""Frozen models by folder or hub id: loading them, and what their weights hash to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from bench.errors import BenchError, DamagedError, MissingError, UsageError, one_line, unknown
from bench.hashing import content_hash
from bench.lazy import torch
from bench.system.devices import check_device
from bench.weights.checkpoints import (
    COUNTS,
    cause_of,
    refuse_stand_ins,
    require_folder,
    require_tokenizer,
    require_weights,
)

if TYPE_CHECKING:
    from torch import Tensor

PRECISIONS = ("float32", "bfloat16", "float16")
FILES = ("model.safetensors", "pytorch_model.bin")
NEVER_SAVED = re.compile(r"(^|\.)position_ids$")
"""Buffers that only count, which files of some releases hold and others do not."""
UNPLACED, SAVED_WITH = "holds more than its config.json describes, the tensor", "take the config.json saved with them"
"""What is wrong, and its cure, where weights have tensors that the model has no place for."""
CURE = "name a local folder in transformers' format, or make the hub reachable and accept the model's licence"


def _absent(what: str, source: str, error: Exception) -> MissingError:
    """The error of what cannot be loaded; of a local folder no licence is to be accepted."""
    cure = "" if Path(source).is_dir() else f"; {CURE}"
    return MissingError(f"no {what} at {source!r}: {one_line(error)}{cure}")


@cache
def weights_hash(source: str) -> str:
    """Content hash of a transformers model's weights; fetches those of a hub id.

    Raises MissingError for a folder without weights, and for a hub id that cannot be reached; DamagedError for a file
    that is no weights.
    """
    from transformers.utils import cached_file

    try:
        for name in FILES:
            if path := cached_file(source, name, _raise_exceptions_for_missing_entries=False):
                require_weights(Path(path), "weights file")
                return content_hash([Path(path)])
    except OSError as error:
        raise _absent("model", source, error) from error
    raise _absent("weights", source, OSError(f"neither {' nor '.join(FILES)}"))


def weights_name(source: str, precision: str) -> str:
    """`weights_hash`, and the precision if it is not float32, which changes scores too."""
    return weights_hash(source) + ("" if precision == "float32" else f"-{precision}")


def whole(loaded: tuple, where: str | Path, unread: re.Pattern = NEVER_SAVED):
    """The model of what `from_pretrained(..., output_loading_info=True)` gave, if its files held all of it and no more.

    The libraries only remark on a tensor that they made up, or that they left out: the model that was trained is
    another one then. `unread` ones may lack, and may be there. Raises DamagedError naming the first.
    """
    model, report = loaded
    known = lambda name: NEVER_SAVED.search(name) or COUNTS.search(name) or unread.search(name)  # noqa: E731
    lacks = sorted(n for n in report["missing_keys"] if not (NEVER_SAVED.search(n) or unread.search(n)))
    again = "download its weights again, or save them whole"
    another_shape = "holds in another shape than its config.json says the tensor"
    for cause, names, cure in (
        ("lacks the tensor", lacks, again),
        (another_shape, sorted(names_of(report["mismatched_keys"])), again),
        (UNPLACED, sorted(n for n in report["unexpected_keys"] if not known(n)), SAVED_WITH),
    ):
        if names:
            raise DamagedError(f"{where} {cause} {first_of(names)}: {cure}")
    return model


def first_of(names: list[str]) -> str:
    """The first name, and how many more there are."""
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]


def names_of(mismatched: Iterable) -> list[str]:
    """Tensors of another shape in a loading report: the libraries give names alone, or with the two shapes."""
    return [entry if isinstance(entry, str) else entry[0] for entry in mismatched]


def require_numbers(tensors: Mapping[str, Tensor], where: str | Path, precision: str = "float32") -> None:
    """Raise DamagedError, naming the first, for tensors that are not of floats or hold values that are not finite.

    A network gives NaN for them, which is neither above nor below any threshold: nothing found, the first of all
    answers. `precision` is what the tensors were read in: half precision has no numbers beyond 65504.
    """
    again = "download its weights again" if precision == "float32" else "set its precision to float32"
    for name, tensor in tensors.items():
        if (kind := str(tensor.dtype).removeprefix("torch.")) not in (*PRECISIONS, "float64"):
            raise DamagedError(f"{where} holds {kind} in the tensor {name}, not one of {', '.join(PRECISIONS)}")
        # The extremes of a tensor with NaN are NaN, and no mask as large as the tensor is made.
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            of = "" if precision == "float32" else f" as {precision}"
            raise DamagedError(f"{where} holds values that are not finite{of} in the tensor {name}: {again}")


def load_frozen(
    model_class, source: str, device: str, what: str, precision: str = "float32", unread: re.Pattern = NEVER_SAVED
):
    """A transformers model without gradients; its files may lack the parameters that match `unread`.

    Raises MissingError naming what is not where, DamagedError for files that are no weights, not all of them or
    no numbers, UsageError for a model of another kind, for another precision than float32, bfloat16 and float16 and for
    a device that is no device.
    """
    from transformers import AutoConfig
    from transformers.utils.logging import disable_progress_bar

    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    check_device(device, what, "set its device to cpu")
    disable_progress_bar()  # its bar would tear ours
    if Path(source).is_dir():
        require_folder(Path(source), what)
    try:
        kind, wanted = AutoConfig.from_pretrained(source).model_type, model_class.config_class.model_type
        if kind != wanted:  # transformers would only warn, and make the weights up
            raise UsageError(f"{source!r} holds a model of type {kind!r}, not {wanted!r}: it is no {what}")
        how = {"dtype": getattr(torch, precision), "ignore_mismatched_sizes": True, "output_loading_info": True}
        model = whole(model_class.from_pretrained(source, **how), source, unread)
        floats = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        require_numbers(floats, source, precision)
    except BenchError:
        raise
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError) as error:
        raise _absent(what, source, error) from error
    except (SafetensorError, RuntimeError, UnpicklingError, EOFError) as error:
        raise DamagedError(f"no {what} at {source!r}: {cause_of(error)}") from error
    return model.eval().requires_grad_(False).to(device)


def save_folder(model, folder: Path) -> None:
    """Write a transformers model as a folder. Raises UsageError where that cannot be done."""
    if folder.is_file():  # transformers would only remark on it
        raise UsageError(f"{folder} is a file: name a folder for the converted model")
    try:
        model.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write the converted model to {folder}: {one_line(error)}") from error


def load_processor(source: str):
    """The tokenizer and the image processor (on PIL pictures) of a CLIP model. Raises MissingError likewise."""
    from transformers import AutoImageProcessor, AutoTokenizer

    what = "tokenizer and image processor"
    if Path(source).is_dir():
        refuse_stand_ins(Path(source), what)
        require_tokenizer(Path(source))
    try:
        return AutoTokenizer.from_pretrained(source), AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        raise _absent(what, source, error) from error
