"""The packages that `bench perf` needs, for a machine that nothing can be downloaded to."""

import sys
from importlib.metadata import packages_distributions, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMPORTED = ("diffusers", "peft", "transformers", "accelerate", "torch", "numpy", "pydantic", "rich", "typer", "yaml")
"""Packages that a measurement imports; what they require follows from their metadata."""
PLATFORM = ("torch", "triton", "numpy")
"""Packages with builds for a kind of GPU, which the machine should have already; so do images with a CUDA build of
torch. What only they require is left out."""


def carried() -> list[str]:
    """Requirement lines `name==version`, for pip download, and comments that say how to use them."""
    providers = packages_distributions()
    names = {canonicalize_name(name) for package in IMPORTED for name in providers.get(package, ())}
    wanted: dict[str, str] = {name: version(name) for name in names}
    queue = [name for name in wanted if name not in PLATFORM]
    seen = set()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            found = canonicalize_name(requirement.name)
            wanted.setdefault(found, version(found))
            if found not in PLATFORM:
                queue.append(found)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return [
        f"# A machine without network needs a CUDA build of torch for Python {python}, these packages, and a wheel of",
        "# this project (pip wheel --no-deps .). Elsewhere: pip download --no-deps -d wheels -r FILE. There: pip",
        "# install --no-index --no-deps wheels/*.whl, then HF_HUB_OFFLINE=1 bench perf --output gpu.json. Repeated, it",
        "# goes on where it was cut off.",
        *sorted(f"{name}=={number}" for name, number in wanted.items() if name not in PLATFORM),
    ]
