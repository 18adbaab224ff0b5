"""Encoded prompts that were met before: in memory up to a limit, and on disk, by content."""

from collections import OrderedDict
from pathlib import Path

import torch

from bench.backbones.conditioning import Conditioning
from bench.files import write_atomic
from bench.hashing import text_hash

MEMORY = 2**30
"""Bytes of encoded prompts kept on the device: 600 prompts of SD3.5 with T5 in half precision."""


class Embeddings:
    """Prompt -> Conditioning. `folder` must belong to one set of encoders at one precision; None keeps no files."""

    def __init__(self, folder: Path | None, device: torch.device):
        self.folder, self.device = folder, device
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()
        self._bytes = 0

    def get(self, prompt: str) -> Conditioning | None:
        """What was put under this very text."""
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
        elif path := self._path(prompt):
            if not path.is_file():
                return None
            self._keep(prompt, self._read(path))
        return self._kept.get(prompt)

    def put(self, prompt: str, encoded: Conditioning) -> None:
        """Remember one encoded prompt."""
        from safetensors.torch import save

        self._keep(prompt, encoded)
        if path := self._path(prompt):
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {"sequence": encoded.sequence, "pooled": encoded.pooled}
            write_atomic(path, save({name: t.contiguous() for name, t in tensors.items()}))

    def _keep(self, prompt: str, encoded: Conditioning) -> None:
        self._kept[prompt] = encoded
        self._bytes += encoded.bytes
        while self._bytes > MEMORY and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].bytes

    def _read(self, path: Path) -> Conditioning:
        from safetensors.torch import load_file

        tensors = load_file(path)
        return Conditioning(tensors["sequence"].to(self.device), tensors["pooled"].to(self.device))

    def _path(self, prompt: str) -> Path | None:
        if self.folder is None:
            return None
        name = text_hash(prompt)
        return self.folder / name[:2] / f"{name}.safetensors"
