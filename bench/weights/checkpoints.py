"""Downloaded weight files: recognising files that are not weights, and reading weights without executing code."""

import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.errors import DamagedError, MissingError, UsageError, one_line
from bench.system.files import read_record

LOOKED_AT = 512
"""Number of bytes at a file's beginning that are inspected."""
POINTER = re.compile(rb"version https://(git-lfs\.github|hawser\.github)\.com/spec/")
PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)\b", re.IGNORECASE)
AGAIN = "download it again"
CUT_OFF = f"it is truncated: {AGAIN}"
WRITTEN = (".json", ".txt", ".model")
"""Suffixes of the files in a folder that are read along with its weights."""
PLAIN = ("F64", "F32", "F16", "BF16")
"""Types in a .safetensors file whose numbers are the weights themselves."""
BUFFERS = ("I64", "BOOL")
"""Types of index and mask buffers; weights and biases never have them."""
COUNTS = re.compile(r"(^|\.)(position_ids|relative_position_index|num_batches_tracked)$")
"""Names of buffers that only hold indices or counts, of any type."""
PICKLED = b"\x80"
"""Beginning of a pickle of protocol 2 or later."""
LEGACY_PICKLES = 5
"""torch's format before zip archives: a magic number, a version, sizes of types, the content and keys of storages, each
pickled, and then the storages' bytes."""
QUANTISED = "quantised weights are not supported: name a model saved in float32, bfloat16 or float16"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Sets of files each of which is a complete tokenizer of the CLIP or T5 kind."""


def require_weights(path: Path, what: str) -> None:
    """Raise unless a file can hold weights: MissingError if they are still to be downloaded, else DamagedError.

    `what` names the expected content in errors. Inspects the file's beginning, and whether a zip archive, a
    .safetensors file or the pickles of an older torch file are complete; reads no tensor.
    """
    if path.is_dir():
        raise DamagedError(f"{path} is not a valid {what}: it is a folder")
    head = refuse_stand_in(path, what)
    if not head.strip(b"\0 \r\n\t"):
        found = "begins with zeros" if head else "is empty"
        raise DamagedError(f"{path} is not a valid {what}: it {found}: {AGAIN}")
    cause = ""
    if path.suffix == ".safetensors":
        cause = _of_safetensors(path)
    elif head.startswith(b"PK"):
        cause = "" if zipfile.is_zipfile(path) else CUT_OFF
    elif head.startswith(PICKLED):
        # torch would take a type's name that is cut off for the name of a foreign object.
        cause = CUT_OFF if _ends_within_pickle(path) else ""
    elif text := _as_text(head):
        cause = f"it is text that begins with {text[:40]!r}"
    if cause:
        raise DamagedError(f"{path} is not a valid {what}: {cause}")


def require_model(path: Path, what: str, unread: tuple[str, ...] = ()) -> None:
    """`require_weights` for a model; also raises UsageError if a .safetensors file holds quantised weights.

    Quantised numbers only give weights together with scales, which the libraries ignore here. Tensors whose names start
    with one of `unread` may have any type. Reads only the file's header.
    """
    require_weights(path, what)
    if path.suffix != ".safetensors":
        return
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            kind = file.get_slice(name).get_dtype()
            is_buffer = kind in BUFFERS and not name.endswith(("weight", "bias"))
            allowed = kind in PLAIN or is_buffer or COUNTS.search(name) or name.startswith(unread)
            if not allowed:
                raise UsageError(f"{path} holds the tensor {name} as {kind}: {QUANTISED}")


def refuse_quantised(config: dict[str, Any], where: Path | str) -> None:
    """Raise UsageError if a model's config.json says that its weights are quantised."""
    if told := config.get("quantization_config"):
        method = told.get("quant_method") if isinstance(told, dict) else None
        by = f" by {method}" if isinstance(method, str) else ""
        raise UsageError(f"{where} says that the weights are quantised{by} (quantization_config): {QUANTISED}")


def require_folder(folder: Path, what: str) -> None:
    """`require_model` for the weights that transformers reads from a folder; also checks the files read with them."""
    # transformers uses the first of these formats that exists.
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"):
        if found := sorted(folder.glob(pattern)):
            for path in found:
                require_model(path, f"weights file of a {what}")
            break
    refuse_stand_ins(folder, what)
    if (folder / "config.json").is_file():
        refuse_quantised(read_config(folder / "config.json"), folder / "config.json")


def refuse_stand_ins(folder: Path, what: str) -> None:
    """`refuse_stand_in` for each file in a folder that is read along with its weights."""
    for path in sorted(folder.iterdir()):
        if path.suffix in WRITTEN and path.is_file():
            refuse_stand_in(path, f"file of a {what}")


def read_config(path: Path) -> dict[str, Any]:
    """`read_record` for a downloaded JSON file; Git LFS pointers and web pages are named as such in errors."""
    if path.is_file():
        refuse_stand_in(path, "JSON file")
    return read_record(path)


def require_tokenizer(folder: Path) -> None:
    """Raise MissingError for a folder without a tokenizer's vocabulary; transformers would load an empty tokenizer."""
    for names in TOKENIZERS:
        if all((folder / name).is_file() for name in names):
            return
    known = ", ".join(" with ".join(names) for names in TOKENIZERS)
    incomplete = [names for names in TOKENIZERS if any((folder / name).is_file() for name in names)]
    absent = (name for names in incomplete for name in names if not (folder / name).is_file())
    lacking = next(absent, "tokenizer.json")
    raise MissingError(f"{folder} has no {lacking}: a tokenizer consists of one of {known}; {AGAIN}")


def load_checkpoint(path: Path, what: str) -> dict[str, Any]:
    """The dictionary in a torch checkpoint or .safetensors file, on the CPU; only tensors and plain values are read.

    `what` names the expected content in errors. Raises as `require_weights`, and DamagedError for a file that holds
    other objects (reading them could execute code) or no dictionary.
    """
    require_weights(path, what)
    try:
        content = _read(path)
    except Exception as error:  # torch.load can raise almost anything on corrupt bytes
        raise DamagedError(f"{path} is not a valid {what}: {cause_of(error)}") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is not a valid {what}: it holds {type(content).__name__}, not tensors by name")
    return content


def state_dict(path: Path, what: str) -> dict[str, Any]:
    """The tensors of a checkpoint by name, found at the top level or under the key `state_dict`.

    Raises as `load_checkpoint`.
    """
    content = load_checkpoint(path, what)
    found = content.get("state_dict", content)
    if not isinstance(found, dict) or not any(hasattr(value, "shape") for value in found.values()):
        raise DamagedError(f"{path} is not a valid {what}: it holds no tensors by name")
    return {str(key): value for key, value in found.items() if hasattr(value, "shape")}


def cause_of(error: Exception) -> str:
    """Why weights could not be read, without torch's advice to disable safe reading."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", one_line(error))
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds {found[1]}; only tensors and plain values are read, because other objects could execute code"
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
        warnings.simplefilter("ignore")  # torch warns about how the file was written, which users cannot change
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_numbers() -> Iterator[Any]:
    """The types behind numpy numbers, which training scripts store next to tensors; reading them executes no code."""
    import numpy as np
    from numpy._core.multiarray import scalar

    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # the names in numpy 1 and 2
        yield scalar, f"{module}.scalar"
    yield np.dtype
    yield from {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdg"}


def refuse_stand_in(path: Path, what: str) -> bytes:
    """Return a file's beginning, or raise if it only stands in for the expected file.

    Raises MissingError for a Git LFS pointer or a missing file, and DamagedError for a web page or an unreadable file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(LOOKED_AT)
    except FileNotFoundError as error:
        raise MissingError(f"no {what} at {path}") from error
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {one_line(error)}") from error
    if cause := stand_in(head):
        kind = MissingError if POINTER.match(head) else DamagedError
        raise kind(f"{path} is not a valid {what}: {cause}")
    return head


def stand_in(head: bytes) -> str:
    """Whether a file's beginning is that of a Git LFS pointer or a web page, and the cure; empty for any other file."""
    if POINTER.match(head):
        return "it is a Git-LFS pointer; fetch the file itself (git lfs pull)"
    if PAGE.match(head):
        return f"it is a web page; {AGAIN} from the address of the file itself"
    return ""


def _of_safetensors(path: Path) -> str:
    """What is wrong with a .safetensors file, judging by its header and length; empty if nothing is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        # The format: the header's length in 8 bytes, the header as JSON, then the tensors.
        length = int.from_bytes(file.read(8), "little")
        begins = file.read(1)
        if size > 8 and (begins != b"{" or length > 10**8):  # the format limits headers to 100 MB
            return "it is not in safetensors format"
        if size < 8 + length:
            return CUT_OFF
        try:
            entries = json.loads(begins + file.read(length - 1))
            ends = (entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
            promised = max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return "it is not in safetensors format"
    return CUT_OFF if size < 8 + length + promised else ""


def _ends_within_pickle(path: Path) -> bool:
    """Whether a file in torch's format before zip archives ends within one of the pickles at its beginning.

    Only walks through their instructions, so that no code in them is executed.
    """
    with path.open("rb") as file:
        for _ in range(LEGACY_PICKLES):
            if not file.peek(1):
                return False
            try:
                for _instruction in pickletools.genops(file):
                    pass
            except (ValueError, MemoryError):
                return not file.read(1)
    return False


def _as_text(head: bytes) -> str:
    """A file's beginning as text on one line; empty if it is binary."""
    try:
        text = " ".join(head.decode().split())
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""
