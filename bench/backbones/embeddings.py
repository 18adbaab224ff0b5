"""A cache of encoded prompts: in memory and on disk up to limits, the files named by the prompt's hash."""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import torch

from bench.backbones.conditioning import Conditioning
from bench.system.files import write_atomic

MEMORY = 2**30
"""Limit on encoded prompts kept on the device, in bytes: 600 prompts of SD3.5 with T5 in half precision."""
DISK = 20 * 2**30
"""Limit on the files of encoded prompts in one folder, in bytes: 12,000 such prompts. Further ones are encoded again
when they are needed. Training draws prompts evenly, so that the first ones are worth as much as any others."""


PADDED = "lengths_differ"
"""In a file's metadata: the names of the tensors that batches pad (Conditioning.lengths)."""


class Embeddings:
    """A cache from prompts to Conditioning."""

    def __init__(self, folder: Path | None, device: torch.device):
        """`folder` must be used by one set of encoders at one precision only; None keeps no files."""
        self.folder, self.device = folder, device
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()
        self._bytes = 0
        self._writes = True
        self._on_disk: int | None = None
        """Bytes of the files in `folder`; None until they are counted."""

    def get(self, prompt: str) -> Conditioning | None:
        """The Conditioning stored for exactly this prompt, or None."""
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
        elif path := self._path(prompt):
            if (encoded := self._read(path, prompt)) is None:
                return None
            self._keep(prompt, encoded)
        return self._kept.get(prompt)

    def has(self, prompt: str) -> bool:
        """Whether `get` is likely to find this prompt; a file is not read."""
        return prompt in self._kept or bool((path := self._path(prompt)) and path.exists())

    def put(self, prompt: str, encoded: Conditioning) -> None:
        """Store one encoded prompt; in memory only if files cannot be written."""
        from safetensors.torch import save

        self._keep(prompt, encoded)
        if self._writes and (path := self._path(prompt)):
            tensors = {name: tensor.contiguous() for name, tensor in encoded.tensors.items()}
            data = save(tensors, {"prompt": prompt, **_padding(encoded)})
            try:
                if not self._has_room(len(data)):
                    return
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, data)
            except OSError:
                # Read-only folder or full disk. Do not fail: encoding the prompt again costs only time.
                self._writes = False

    def _has_room(self, more: int) -> bool:
        """Whether a file of `more` bytes keeps the folder within DISK, as far as this process knows; it then counts."""
        if self._on_disk is None:
            assert self.folder is not None
            files = self.folder.glob("*/*.safetensors")
            self._on_disk = sum(file.stat().st_size for file in files)
        fits = self._on_disk + more <= DISK
        if fits:
            self._on_disk += more
        return fits

    def _keep(self, prompt: str, encoded: Conditioning) -> None:
        self._kept[prompt] = encoded
        self._bytes += encoded.bytes
        while self._bytes > MEMORY and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].bytes

    def _read(self, path: Path, prompt: str) -> Conditioning | None:
        """Read a file; None if it is missing, damaged or holds a different prompt, and will be written again."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                if told.get("prompt") != prompt:
                    return None
                tensors = {name: file.get_tensor(name).to(self.device) for name in list(file.keys())}
                padded = json.loads(told.get(PADDED, "[]"))
                return Conditioning(tensors, {name: (tensors[name].shape[1],) for name in padded})
        except (SafetensorError, OSError, ValueError, KeyError):
            return None

    def _path(self, prompt: str) -> Path | None:
        if self.folder is None:
            return None
        # Subfolders by the first two characters keep single folders from holding very many files.
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


def _padding(encoded: Conditioning) -> dict[str, str]:
    """What a file says about the tensors of one prompt that batches pad; nothing if there are none."""
    return {PADDED: json.dumps(sorted(encoded.lengths))} if encoded.lengths else {}
