"""`bench doctor`: check what works on this machine, and print how to fix the rest."""

import os
import shutil
from pathlib import Path

from bench.config.resolve import describe
from bench.errors import BenchError
from bench.registry import registered
from bench.store.provenance import versions


def _gpu() -> tuple[bool, str]:
    import torch

    if torch.cuda.is_available():
        return True, torch.cuda.get_device_name(0)
    return False, "torch finds none; micro needs none. For SD3.5, install a CUDA build of torch on a machine with a GPU"


def _kernels() -> tuple[bool, str]:
    from bench.sampler.backend import triton_kernels

    if triton_kernels():
        return True, "Triton for tensors on a GPU, PyTorch elsewhere"
    return False, "PyTorch everywhere; install triton for faster kernels on a GPU"


def _hub() -> tuple[bool, str]:
    import socket

    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return False, "disabled by HF_HUB_OFFLINE=1; local paths work"
    try:
        with socket.create_connection(("huggingface.co", 443), timeout=2):
            return True, "reachable"
    except OSError as error:
        return False, f"not reachable ({error}); use local paths, or download weights on a machine with network access"


def _slurm() -> tuple[bool, str]:
    if shutil.which("sbatch"):
        return True, shutil.which("sbatch") or ""
    return False, "sbatch is not on PATH; use --executor inline or local"


def examine() -> None:
    """Print one line per check: ok, or what would fix it."""
    for package, number in versions().items():
        print(f"{'missing' if number == 'missing' else 'ok':<9}{package} {number}")
    checks = {"GPU": _gpu, "step kernels": _kernels, "model hub": _hub, "Slurm": _slurm}
    for name, check in checks.items():
        good, text = check()
        print(f"{'ok' if good else 'no':<9}{name}: {text}")
    for name in registered("backbone"):
        try:
            descriptor = describe(name)
            fingerprint = descriptor.fingerprint()
        except BenchError as error:
            print(f"{'no':<9}backbone {name}: {error}")
            continue
        folder = descriptor.teachers or Path("-")
        shipped = sorted(path.parent.name for path in folder.glob("*/adapter_config.json"))
        print(f"{'ok':<9}backbone {name}: weights {fingerprint}, shipped teachers: {', '.join(shipped) or 'none'}")
