"""Downloaded weight files: what they are if they are no weights, and reading them without running code."""

import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import DamagedError, MissingError, UsageError, one_line
from bench.system.files import read_record

LOOKED_AT = 512
"""Bytes that tell what a file is."""
POINTER = re.compile(rb"version https://(git-lfs\.github|hawser\.github)\.com/spec/")
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)\b", re.IGNORECASE)
AGAIN = "download it again"
CUT_OFF = f"it is cut off: {AGAIN}"
WRITTEN = (".json", ".txt", ".model")
"""Endings of what lies beside weights in a folder and is read with them."""
PLAIN = ("F64", "F32", "F16", "BF16")
"""Types of a .safetensors file whose numbers are the weights themselves."""
BUFFERS = ("I64", "BOOL")
"""Types of buffers that count or mask; of no weight or bias."""
COUNTS = re.compile(r"(^|\.)(position_ids|relative_position_index|num_batches_tracked)$")
"""Buffers that only count, of whatever type."""
QUANTISED = "quantised weights are not supported: name a model saved in float32, bfloat16 or float16"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Files that hold a tokenizer of CLIP's or T5's kind."""


def require_weights(path: Path, what: str) -> None:
    """Raise if a file cannot hold weights: MissingError where they are still to be fetched, DamagedError otherwise.

    `what` it should be is named in errors. Looks at the beginning, and at whether a zip archive or a .safetensors file
    is whole; reads no tensor.
    """
    if path.is_dir():
        raise DamagedError(f"{path} is no {what}: it is a folder")
    head = refuse_stand_in(path, what)
    if not head.strip(b"\0 \r\n\t"):
        raise DamagedError(f"{path} is no {what}: it {'begins with zeros' if head else 'is empty'}: {AGAIN}")
    cause = ""
    if path.suffix == ".safetensors":
        cause = _of_safetensors(path)
    elif head.startswith(b"PK"):
        cause = "" if zipfile.is_zipfile(path) else CUT_OFF
    elif text := _as_text(head):
        cause = f"it is text that begins with {text[:40]!r}"
    if cause:
        raise DamagedError(f"{path} is no {what}: {cause}")


def require_model(path: Path, what: str, unread: tuple[str, ...] = ()) -> None:
    """`require_weights` of a model's weights, and of a .safetensors file UsageError for quantised ones.

    Their numbers stand for weights only together with scales that the libraries read past. Tensors under the prefixes
    `unread` may be anything. Only the header is read.
    """
    require_weights(path, what)
    if path.suffix != ".safetensors":
        return
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            kind = file.get_slice(name).get_dtype()
            counts = COUNTS.search(name) or (kind in BUFFERS and not name.endswith(("weight", "bias")))
            if kind not in PLAIN and not counts and not name.startswith(unread):
                raise UsageError(f"{path} holds the tensor {name} as {kind}: {QUANTISED}")


def refuse_quantised(config: dict[str, Any], where: Path | str) -> None:
    """Raise UsageError for the config.json of a model whose weights a library has quantised."""
    if told := config.get("quantization_config"):
        method = told.get("quant_method") if isinstance(told, dict) else None
        by = f" by {method}" if isinstance(method, str) else ""
        raise UsageError(f"{where} says that the weights are quantised{by} (quantization_config): {QUANTISED}")


def require_folder(folder: Path, what: str) -> None:
    """As `require_model`, for the weights that transformers reads in a local folder, and for what it reads beside."""
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"):
        if found := sorted(folder.glob(pattern)):
            for path in found:
                require_model(path, f"weights file of a {what}")
            break
    refuse_stand_ins(folder, what)
    if (folder / "config.json").is_file():
        refuse_quantised(read_config(folder / "config.json"), folder / "config.json")


def refuse_stand_ins(folder: Path, what: str) -> None:
    """Raise for Git-LFS pointers and web pages among the files that are read beside a folder's weights."""
    for path in sorted(folder.iterdir()):
        if path.suffix in WRITTEN and path.is_file():
            refuse_stand_in(path, f"file of a {what}")


def read_config(path: Path) -> dict[str, Any]:
    """`read_record` of a JSON file that was downloaded: what stands in for one is called what it is."""
    if path.is_file():
        refuse_stand_in(path, "JSON file")
    return read_record(path)


def require_tokenizer(folder: Path) -> None:
    """Raise MissingError for a folder without a tokenizer's words: transformers would make a tokenizer without any."""
    for names in TOKENIZERS:
        if all((folder / name).is_file() for name in names):
            return
    known = ", ".join(" with ".join(names) for names in TOKENIZERS)
    begun = [names for names in TOKENIZERS if any((folder / name).is_file() for name in names)]
    lacking = next((name for names in begun for name in names if not (folder / name).is_file()), "tokenizer.json")
    raise MissingError(f"{folder} has no {lacking}: a tokenizer's folder holds one of {known}; {AGAIN}")


def load_checkpoint(path: Path, what: str) -> dict[str, Any]:
    """The content of a torch checkpoint, or of a .safetensors file, on the CPU: tensors and plain values alone.

    `what` it should be is named in errors. Raises as `require_weights` does, and DamagedError for a file that holds
    other objects, since reading them could run code, or no dictionary.
    """
    require_weights(path, what)
    try:
        content = _read(path)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise DamagedError(f"{path} is no {what}: {cause_of(error)}") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is no {what}: it holds {type(content).__name__}, not tensors by name")
    return content


def state_dict(path: Path, what: str) -> dict[str, Any]:
    """The tensors by name of a checkpoint, whether it holds them as `state_dict` beside others or by themselves.

    Raises as `load_checkpoint` does.
    """
    content = load_checkpoint(path, what)
    found = content.get("state_dict", content)
    if not isinstance(found, dict) or not any(hasattr(value, "shape") for value in found.values()):
        raise DamagedError(f"{path} is no {what}: it holds no tensors by name")
    return {str(key): value for key, value in found.items() if hasattr(value, "shape")}


def cause_of(error: Exception) -> str:
    """What a reader of weights ran into, without torch's advice to switch the safe reading off."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", one_line(error))
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds {found[1]}, and nothing but tensors and plain values is read, since that could run code"
    if "eights only load failed" in text:
        return "it is not in torch's format"
    if isinstance(error, EOFError) or re.search(r"unexpected EOF|truncated|MetadataIncompleteBuffer", text):
        return CUT_OFF
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:300])


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    with warnings.catch_warnings(), torch.serialization.safe_globals(list(_numpy_numbers())):
        warnings.simplefilter("ignore")  # its remarks on how a file was written
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_numbers() -> Iterator[Any]:
    """What numbers of numpy in a checkpoint's notes are made of: a type and bytes, which run nothing."""
    import numpy as np
    from numpy._core.multiarray import scalar

    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # numpy 1 and 2
        yield scalar, f"{module}.scalar"
    yield np.dtype
    yield from {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdg"}


def refuse_stand_in(path: Path, what: str) -> bytes:
    """The file's beginning. Raises MissingError for a Git-LFS pointer or no file, DamagedError for a web page."""
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_AT)
    except FileNotFoundError as error:
        raise MissingError(f"no {what} at {path}") from error
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {one_line(error)}") from error
    if cause := stand_in(head):
        raise (MissingError if POINTER.match(head) else DamagedError)(f"{path} is no {what}: {cause}")
    return head


def stand_in(head: bytes) -> str:
    """What a file is that stands for one elsewhere, by its beginning, and how to get it; empty for any other."""
    if POINTER.match(head):
        return "it is a Git-LFS pointer; fetch the file itself (git lfs pull)"
    if PAGE.match(head):
        return f"it is a web page; {AGAIN}, by the address of the file itself"
    return ""


def _of_safetensors(path: Path) -> str:
    """What is wrong with a .safetensors file, by its header and length; empty if nothing is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        begins = file.read(1)
        if size > 8 and (begins != b"{" or length > 10**8):  # the format's own limit
            return "it is not in safetensors format"
        if size < 8 + length:
            return CUT_OFF
        try:
            entries = json.loads(begins + file.read(length - 1))
            promised = max((e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "it is not in safetensors format"
    return CUT_OFF if size < 8 + length + promised else ""


def _as_text(head: bytes) -> str:
    """The beginning of a text file on one line; empty for bytes that are none."""
    try:
        text = " ".join(head.decode().split())
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""
