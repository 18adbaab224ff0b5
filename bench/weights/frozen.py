"""Frozen transformers models, given as a folder or hub id: loading them and hashing their weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from bench.errors import BenchError, DamagedError, MissingError, UsageError, one_line, unknown
from bench.hashing import content_hash, sampled_hash
from bench.lazy import torch
from bench.system.devices import check_device
from bench.system.files import read_record
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
"""Index buffers, which some releases of the libraries save and others do not."""
UNPLACED = "holds a tensor that its config.json does not describe:"
SAVED_WITH = "use the config.json saved with these weights"
"""The problem with weights that have tensors the model does not have, and its cure."""
CURE = "name a local folder in transformers' format, or connect to the hub and accept the model's licence"


def _absent(what: str, source: str, error: Exception) -> MissingError:
    """The error for a model that cannot be loaded; advice on the hub is added for hub ids only."""
    cure = "" if Path(source).is_dir() else f"; {CURE}"
    return MissingError(f"no {what} at {source!r}: {one_line(error)}{cure}")


@cache
def weights_hash(source: str) -> str:
    """Content hash of a transformers model's weights; downloads them for a hub id.

    Weights in several files are too large to be read whole at every start: `sampled_hash`. Raises MissingError for a
    folder without weights and for a hub id that cannot be reached, and DamagedError for a file that does not hold
    weights.
    """
    from transformers.utils import cached_file

    try:
        for name in FILES:
            if path := cached_file(source, name, _raise_exceptions_for_missing_entries=False):
                require_weights(Path(path), "weights file")
                return content_hash([Path(path)])
            if index := cached_file(source, f"{name}.index.json", _raise_exceptions_for_missing_entries=False):
                shards = sorted(set(read_record(Path(index)).get("weight_map", {}).values()))
                files = [Path(str(cached_file(source, shard))) for shard in shards]
                for file in files:
                    require_weights(file, "weights file")
                return sampled_hash([Path(index), *files])
    except OSError as error:
        raise _absent("model", source, error) from error
    raise _absent("weights", source, OSError(f"neither {' nor '.join(FILES)} exists"))


def weights_name(source: str, precision: str) -> str:
    """`weights_hash`, followed by the precision unless it is float32, since precision changes scores too."""
    return weights_hash(source) + ("" if precision == "float32" else f"-{precision}")


def whole(loaded: tuple, where: str | Path, unread: re.Pattern = NEVER_SAVED):
    """The model from `from_pretrained(..., output_loading_info=True)`, if its files hold exactly its tensors.

    The libraries only warn about tensors that they initialise at random or ignore, although the result is not the model
    that was trained. Tensors that match `unread` may be missing or superfluous. Raises DamagedError naming the first
    tensor at fault.
    """
    model, report = loaded

    def optional(name: str) -> bool:
        return bool(NEVER_SAVED.search(name) or unread.search(name))

    lacks = sorted(name for name in report["missing_keys"] if not optional(name))
    extra = sorted(name for name in report["unexpected_keys"] if not (optional(name) or COUNTS.search(name)))
    other_shape = sorted(names_of(report["mismatched_keys"]))
    again = "download its weights again, or save them completely"
    for cause, names, cure in (
        ("lacks the tensor", lacks, again),
        ("holds a tensor whose shape differs from the one in its config.json:", other_shape, again),
        (UNPLACED, extra, SAVED_WITH),
    ):
        if names:
            raise DamagedError(f"{where} {cause} {first_of(names)}: {cure}")
    return model


def first_of(names: list[str]) -> str:
    """The first name, and the number of other names."""
    return f"{names[0]} and {len(names) - 1} more" if names[1:] else names[0]


def names_of(mismatched: Iterable) -> list[str]:
    """Names of the tensors with mismatched shapes in a loading report, whose entries may also give the two shapes."""
    return [entry if isinstance(entry, str) else entry[0] for entry in mismatched]


def require_numbers(tensors: Mapping[str, Tensor], where: str | Path, precision: str = "float32") -> None:
    """Raise DamagedError, naming the first tensor at fault, unless all tensors are finite floating-point numbers.

    Otherwise a network outputs NaN, which compares false with any threshold: a detector would find nothing, and a
    classifier would always answer with the first class. `precision` is the one the tensors were read at: half precision
    turns numbers above 65504 into infinity.
    """
    again = "download its weights again" if precision == "float32" else "set its precision to float32"
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind not in (*PRECISIONS, "float64"):
            raise DamagedError(f"{where} holds {kind} in the tensor {name}, not one of {', '.join(PRECISIONS)}")
        # NaN propagates to the extremes, and unlike isfinite this allocates no mask as large as the tensor.
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            of = "" if precision == "float32" else f" as {precision}"
            raise DamagedError(f"{where} holds values that are not finite{of} in the tensor {name}: {again}")


def load_frozen(
    model_class, source: str, device: str, what: str, precision: str = "float32", unread: re.Pattern = NEVER_SAVED
):
    """Load a transformers model for inference; `what` names it in errors.

    Parameters that match `unread` may be missing from its files. Raises MissingError for missing files, DamagedError
    for files that are corrupt, incomplete or not finite, and UsageError for a different kind of model, an unknown
    precision or an unknown device.
    """
    check_placement(device, precision, what)
    if Path(source).is_dir():
        require_folder(Path(source), what)
    load_config(model_class, source, what)
    return _loaded(partial(model_class.from_pretrained, source), source, device, what, precision, unread)


def load_config(model_class, source: str, what: str):
    """The configuration of a model. Raises MissingError if there is none, UsageError if it is of another kind."""
    from transformers import AutoConfig

    with _reading(source, what):
        config = AutoConfig.from_pretrained(source)
    kind, wanted = config.model_type, model_class.config_class.model_type
    if kind != wanted:  # transformers would only warn, and initialise the weights at random
        raise UsageError(f"{source!r} is not a {what}: its model type is {kind!r}, not {wanted!r}")
    return config


def load_tensors(
    model_class, config, tensors: dict[str, Tensor], source: str, device: str, what: str, precision: str = "float32"
):
    """Like `load_frozen`, from tensors under the model's own names that were read from `source`."""
    check_placement(device, precision, what)
    make = partial(model_class.from_pretrained, None, config=config, state_dict=tensors)
    return _loaded(make, source, device, what, precision, NEVER_SAVED)


def check_placement(device: str, precision: str, what: str) -> None:
    """Raise UsageError for an unknown precision or device of a model."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    check_device(device, what, "set its device to cpu")


def _loaded(make: Callable, source: str, device: str, what: str, precision: str, unread: re.Pattern):
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # two progress bars would garble the terminal
    with _reading(source, what):
        # Mismatched sizes are ignored here only so that `whole` can report them with the tensor's name.
        loaded = make(dtype=getattr(torch, precision), ignore_mismatched_sizes=True, output_loading_info=True)
        model = whole(loaded, source, unread)
        state = model.state_dict()
        floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
        require_numbers(floats, source, precision)
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def _reading(source: str, what: str) -> Iterator[None]:
    """Turn the libraries' errors into MissingError for missing files and DamagedError for files that are corrupt."""
    try:
        yield
    except BenchError:
        raise
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError) as error:
        raise _absent(what, source, error) from error
    except (SafetensorError, RuntimeError, UnpicklingError, EOFError) as error:
        raise DamagedError(f"no {what} at {source!r}: {cause_of(error)}") from error


def save_folder(model, folder: Path) -> None:
    """Write a transformers model as a folder. Raises UsageError if it cannot be written."""
    if folder.is_file():  # transformers would only log an error
        raise UsageError(f"{folder} is a file: name a folder for the converted model")
    try:
        model.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write the converted model to {folder}: {one_line(error)}") from error


def load_processor(source: str):
    """The tokenizer and the image processor (for PIL images) of a CLIP model. Raises MissingError for missing files."""
    from transformers import AutoImageProcessor

    what = "tokenizer and image processor"
    tokenizer = load_tokenizer(source, what)
    try:
        return tokenizer, AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError) as error:
        raise _absent(what, source, error) from error


def load_tokenizer(source: str, what: str = "tokenizer"):
    """The tokenizer of a model. Raises MissingError for missing files; `what` names the expected content in errors."""
    from transformers import AutoTokenizer

    if Path(source).is_dir():
        refuse_stand_ins(Path(source), what)
        require_tokenizer(Path(source))
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _absent(what, source, error) from error
