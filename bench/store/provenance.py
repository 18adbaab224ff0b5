"""Where and with what a run was made."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from bench.hashing import content_hash
from bench.registry import GROUPS, registered

CODE = ("*.py", "*.yaml")
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


def packages() -> dict[str, str]:
    """The packages that the program is made of -> the distribution that brought each: this one's, and those of every
    plug-in that is installed."""
    points = [point for kind in GROUPS for point in registered(kind).values()]
    found = {"bench": ""} | {point.module.partition(".")[0]: point.dist.name if point.dist else "" for point in points}
    return dict(sorted(found.items()))


def code_hash() -> str:
    """Of the code and recipes of all these packages, wherever they are installed; nothing of them is imported."""
    files: list[Path] = []
    for package in packages():
        spec = find_spec(package)
        if spec is None:  # registered, but gone: whoever uses it is told
            continue
        places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
        for place in map(Path, places):
            files += [place] if place.is_file() else [path for kind in CODE for path in place.rglob(kind)]
    return content_hash(files)


def plugins() -> dict[str, str]:
    """Installed distributions of other people's plug-ins -> their versions."""
    brought = packages()
    return {name: version(name) for name in sorted(set(brought.values()) - {brought["bench"], ""})}


def device_name(device: str) -> str:
    """What the work ran on, for people."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def record(device: str) -> dict:
    """One provenance entry."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    others = {"plugins": found} if (found := plugins()) else {}
    return {"started": when, "device": device_name(device), "versions": versions()} | others | commit()
