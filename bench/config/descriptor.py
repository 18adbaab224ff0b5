"""What is known of a backbone without loading it (this file imports no torch).

What functions return is named in words: the types lie in a room above this one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Descriptor:
    """Names and places of one backbone."""

    name: str
    world: str
    """Which detectors and vocabulary fit its pictures: a key of the tasks' tables ('micro', 'photo')."""
    shift: float
    """Timestep shift of its scheduler, as its own files say."""
    load: Callable[..., Any]
    """(device, compute=Compute(), cache=None) -> FlowBackbone; `cache` is a folder that keeps encoded prompts."""
    fingerprint: Callable[[], str]
    """Content hash of its weights."""
    recipes: Path | None = None
    """Folder of <method>.yaml settings tuned for this backbone, applied over the method's own defaults."""
    teachers: Path | None = None
    """Folder of shipped teacher adapters, one folder a task."""
    size: Callable[..., Any] | None = None
    """compute -> Size without loading weights, or None if it is not known; no function where nobody plans GPU-hours."""
    shape_only: Callable[..., Any] | None = None
    """(device, compute) -> FlowBackbone of published size with random weights, which `bench perf` measures."""
    own: Callable[[], dict[str, dict[str, Any]]] = dict
    """() -> section of a spec -> setting -> what holds where nobody says it: saying that gives a run no other name."""
    defaults: Callable[[], dict[str, Any]] = dict
    """() -> settings under every recipe: what this backbone is sensibly computed with where nobody says."""
    check: Callable[..., object] = lambda compute: None
    """compute -> raises UsageError for one that this backbone cannot be computed with; called before anything loads."""
    base_guidance: dict[str, float] | None = None
    """task -> guidance scale at which the untrained base does best on validation prompts; None if unknown."""
