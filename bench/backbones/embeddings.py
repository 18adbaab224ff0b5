"""Encoded prompts that were met before: in memory up to a limit, and on disk, by content."""

import hashlib
from collections import OrderedDict
from pathlib import Path

import torch

from bench.backbones.conditioning import Conditioning
from bench.system.files import write_atomic

MEMORY = 2**30
"""Bytes of encoded prompts kept on the device: 600 prompts of SD3.5 with T5 in half precision."""


class Embeddings:
    """Prompt -> Conditioning. `folder` must belong to one set of encoders at one precision, and to one set of names of
    tensors; None keeps no files."""

    def __init__(self, folder: Path | None, device: torch.device):
        self.folder, self.device = folder, device
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()
        self._bytes = 0
        self._writes = True

    def get(self, prompt: str) -> Conditioning | None:
        """What was put under this very text."""
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
        elif path := self._path(prompt):
            if (encoded := self._read(path, prompt)) is None:
                return None
            self._keep(prompt, encoded)
        return self._kept.get(prompt)

    def put(self, prompt: str, encoded: Conditioning) -> None:
        """Remember one encoded prompt; where no files can be written, for as long as this process lives."""
        from safetensors.torch import save

        self._keep(prompt, encoded)
        if self._writes and (path := self._path(prompt)):
            data = save({name: t.contiguous() for name, t in encoded.tensors.items()}, {"prompt": prompt})
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, data)
            except OSError:  # a read-only place, a full disk: encoding again costs time, and no result
                self._writes = False

    def _keep(self, prompt: str, encoded: Conditioning) -> None:
        self._kept[prompt] = encoded
        self._bytes += encoded.bytes
        while self._bytes > MEMORY and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].bytes

    def _read(self, path: Path, prompt: str) -> Conditioning | None:
        """None for a file that is missing, damaged or another prompt's: it is then written again."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("prompt") != prompt:
                    return None
                return Conditioning({name: file.get_tensor(name).to(self.device) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, ValueError):
            return None

    def _path(self, prompt: str) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"
