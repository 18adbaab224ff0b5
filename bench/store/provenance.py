"""Provenance of a run: code, package versions, plug-ins and device."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from bench.hashing import content_hash
from bench.registry import GROUPS, registered

CODE = ("*.py", "*.yaml")
"""Files of a package that `code_hash` covers."""
PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy", "rapidocr", "onnxruntime")
"""Packages whose version can change a number."""


def versions() -> dict[str, str]:
    """Return the installed versions of Python and PACKAGES; "missing" for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def commit() -> dict[str, str]:
    """Return the commit of the source tree and the hash of its uncommitted diff; empty outside a git checkout."""
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
    """Return package -> its distribution, for this project's packages and those of all installed plug-ins."""
    found = {"bench": ""}
    for kind in GROUPS:
        for point in registered(kind).values():
            package = point.module.partition(".")[0]
            found[package] = point.dist.name if point.dist else ""
    return dict(sorted(found.items()))


def code_hash() -> str:
    """Return the hash of the code and recipes of all `packages`, without importing them."""
    files: list[Path] = []
    for package in packages():
        spec = find_spec(package)
        # A package that is registered but no longer installed is reported when one of its plug-ins is used.
        if spec is None:
            continue
        places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
        for place in map(Path, places):
            if place.is_file():
                files.append(place)
                continue
            for pattern in CODE:
                files += place.rglob(pattern)
    return content_hash(files)


def plugins() -> dict[str, str]:
    """Return distribution -> version of the installed plug-ins of other packages."""
    distributions = packages()
    others = set(distributions.values()) - {distributions["bench"], ""}
    return {name: version(name) for name in sorted(others)}


def device_name(device: str) -> str:
    """Describe a device for people: the GPU's name, or the processor and its number of threads."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def record(device: str) -> dict:
    """Return an entry of provenance.jsonl: start time, device, versions, plug-ins if any, hash of the code, commit."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    found = plugins()
    others = {"plugins": found} if found else {}
    made_by = {"versions": versions(), "code": code_hash()}
    return {"started": when, "device": device_name(device)} | made_by | others | commit()
