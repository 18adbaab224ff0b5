"""Families: which code runs a diffusers pipeline, decided by the class that its model_index.json names.

A family is registered under the entry-point group `bench.families` as a function that returns a Family. This file does
not import torch.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bench.config.descriptor import Descriptor
from bench.errors import BenchError, UsageError
from bench.registry import broken, guarded, leave_out, ours, registered, usable
from bench.weights.checkpoints import read_config
from bench.weights.hub import PREFIX as HUB
from bench.weights.hub import SAFETENSORS, cached, check_repository, require

INDEX = "model_index.json"


FROM_AN_IMAGE = re.compile(r"Img2Img|Inpaint|Edit|Kontext|Control|Fill|Redux|Upscale|Reference")
"""In names of pipelines that need an image as well as text."""


@dataclass(frozen=True)
class Family:
    """Pipelines whose networks are called in the same way."""

    pipelines: tuple[str, ...]
    """Names of diffusers' pipeline classes, as a pipeline's model_index.json has them under `_class_name`."""
    describe: Callable[[str], Descriptor]
    """The descriptor of the pipeline at a folder, hub:OWNER/REPO or single file. Raises UsageError for files that it
    cannot run."""
    reads: Callable[[Path], bool] | None = None
    """Whether a single .safetensors file is of this family; None for a family that reads none."""
    name: str = ""
    """The name under which it must be registered, by which messages call it; empty: any."""
    published: tuple[str, ...] = ()
    """Addresses on the hub that are known to be of this family, so that their index is not needed to plan a run."""


def is_address(backbone: str) -> bool:
    """Whether a backbone is given as a folder, a file or a hub address, and not by a registered name.

    A folder with the name of a registered backbone is written with a slash, such as ./micro.
    """
    if backbone in registered("backbone"):
        return False
    return "/" in backbone or backbone.startswith(HUB) or Path(backbone).is_dir() or _is_single_file(Path(backbone))


def describe_pipeline(source: str) -> Descriptor:
    """The descriptor of the pipeline at a folder, hub:OWNER/REPO or single file.

    Raises UsageError for a pipeline of no registered family, and MissingError if a hub repository's index is needed and
    cannot be downloaded, or if the plug-in of another package fails.
    """
    known, path = families(), Path(source)
    if source.startswith(HUB):
        check_repository(source)
    if published := [name for name, family in known.items() if source in family.published]:
        what, claims = source, published
    elif _is_single_file(path):
        readers = {name: family.reads for name, family in known.items() if family.reads}
        what, claims = source, [name for name, reads in readers.items() if guarded("family", name, reads, path)]
        # A file that no family takes for its own is left to one of this project, whose error says what the file holds.
        claims = claims or [name for name in readers if ours("family", name)][:1]
    else:
        what = pipeline_class(source)
        claims = [name for name, family in known.items() if what in family.pipelines]
    if len(claims) > 1:
        raise UsageError(f"several families run {what}: {', '.join(claims)}; uninstall all but one of the plug-ins")
    if not claims:
        supported = ", ".join(dict.fromkeys(name for family in known.values() for name in family.pipelines))
        raise UsageError(f"{source} holds a {what}, {_what_is(what)}; supported: {supported}")
    found = guarded("family", claims[0], known[claims[0]].describe, source)
    if not isinstance(found, Descriptor):
        raise broken("family", claims[0], f"describes {source} by {type(found).__name__} instead of a Descriptor")
    return found


def families() -> dict[str, Family]:
    """Name -> family, of all registered ones; a broken one of another package is left out with a line on stderr."""
    found = {}
    for name, make in usable("family").items():
        try:
            family = guarded("family", name, make)
            if problem := _problem(family, name):
                raise broken("family", name, problem)
        except BenchError as error:
            if ours("family", name):
                raise
            leave_out(error)
            continue
        found[name] = family
    return found


def _problem(family: object, name: str) -> str:
    """Why an object is no usable Family under the name that it is registered by; empty if it is one."""
    if not isinstance(family, Family):
        return f"returns {type(family).__name__} instead of a Family"
    names = family.pipelines
    if not isinstance(names, tuple) or not names or not all(isinstance(name, str) for name in names):
        return f"has pipelines {names!r:.40} instead of a tuple of names"
    if not callable(family.describe) or not (family.reads is None or callable(family.reads)):
        return "has a describe or reads that is not a function"
    if family.name not in ("", name):
        return f"calls itself {family.name!r}: register it by that name"
    return ""


def pipeline_class(source: str) -> str:
    """The class that a pipeline's model_index.json names; that of a hub repository is downloaded once.

    Raises UsageError if there is no index or it names no class.
    """
    if source.startswith(HUB):
        repository = source.removeprefix(HUB)
        index = cached(repository, INDEX) or require(repository, INDEX)
    else:
        index = Path(source) / INDEX
        if not index.is_file():
            raise UsageError(
                f"{source} is not a diffusers pipeline: it is neither a folder with {INDEX} nor a {SAFETENSORS} file; "
                f"write {HUB}OWNER/REPO for a pipeline on the hub"
            )
    kind = read_config(index).get("_class_name")
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z]\w{0,80}Pipeline", kind):
        raise UsageError(f"{index} names no pipeline class (_class_name)")
    return kind


def _is_single_file(path: Path) -> bool:
    return path.suffix == SAFETENSORS and path.is_file()


def _what_is(kind: str) -> str:
    """What kind of pipeline a class is, for errors: by its name and diffusers' own lists, which are not imported."""
    if FROM_AN_IMAGE.search(kind):
        return "which starts from an image and not from text alone"
    spec = find_spec("diffusers")
    home = Path(spec.origin).parent if spec and spec.origin else Path()
    listed = _text(home / "pipelines" / "auto_pipeline.py")
    from_text = listed.partition("AUTO_TEXT2IMAGE_PIPELINES_MAPPING")[2].partition("AUTO_IMAGE2IMAGE")[0]
    if re.search(rf"\b{kind}\b", from_text):
        return "a text-to-image pipeline of a family that no registered plug-in runs"
    if re.search(rf"\b{kind}\b", _text(home / "__init__.py")):
        return "which diffusers does not list as making images from text"
    return "which this version of diffusers does not have"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
