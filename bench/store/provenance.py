"""Where and with what a run was made."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.hashing import content_hash

PARTS = ("bench", "methods", "tasks", "report", "sweeps")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "rapidocr", "onnxruntime")


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def commit() -> dict[str, str]:
    """Commit and uncommitted diff's hash of the source tree; empty outside a checkout."""
    import hashlib

    def git(*words: str) -> bytes:
        tree = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=tree, capture_output=True, check=True).stdout

    try:
        diff = git("diff", "HEAD")
        return {
            "commit": git("rev-parse", "HEAD").strip().decode(),
            "uncommitted_diff": hashlib.sha256(diff).hexdigest()[:16] if diff else "",
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def code_hash() -> str:
    """Of this project's own code, with its recipes, wherever it is installed."""
    here = Path(__file__).parent.parent.parent
    files = [path for part in PARTS for kind in ("*.py", "*.yaml") for path in (here / part).rglob(kind)]
    return content_hash(files)


def device_name(device: str) -> str:
    """What the work ran on, for people."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def record(device: str) -> dict:
    """One provenance entry."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"started": when, "device": device_name(device), "versions": versions()} | commit()
