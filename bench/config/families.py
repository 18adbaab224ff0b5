"""Families: which code runs a diffusers pipeline, decided by the class that its model_index.json names.

A family is registered under the entry-point group `bench.families` as a function that returns a Family. This file does
not import torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.config.descriptor import Descriptor
from bench.errors import UsageError, one_line
from bench.registry import broken, leave_out, ours, usable
from bench.weights.checkpoints import read_config
from bench.weights.hub import PREFIX as HUB
from bench.weights.hub import check_repository, require

INDEX = "model_index.json"
SINGLE_FILE = ".safetensors"


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


def is_address(backbone: str) -> bool:
    """Whether a backbone is given as a folder, a file or a hub address, and not by a registered name."""
    return "/" in backbone or backbone.startswith(HUB) or Path(backbone).is_dir() or _is_single_file(Path(backbone))


def describe_pipeline(source: str) -> Descriptor:
    """The descriptor of the pipeline at a folder, hub:OWNER/REPO or single file.

    Raises UsageError for a pipeline of no registered family, and MissingError if a hub repository's index is needed and
    cannot be downloaded.
    """
    known, path = families(), Path(source)
    if _is_single_file(path):
        readers = [name for name, family in known.items() if family.reads]
        claims = [name for name in readers if (reads := known[name].reads) and reads(path)]
        what = str(path)
        # A file that no family takes for its own is left to the first, whose error says what the file holds.
        claims = claims or readers[:1]
    else:
        what = pipeline_class(source)
        claims = [name for name, family in known.items() if what in family.pipelines]
    if len(claims) > 1:
        raise UsageError(f"several families run {what}: {', '.join(claims)}; uninstall all but one of the plug-ins")
    if not claims:
        supported = ", ".join(name for family in known.values() for name in family.pipelines)
        raise UsageError(f"{source} holds a {what}, {_what_is(what)}; supported: {supported}")
    return known[claims[0]].describe(source)


def families() -> dict[str, Family]:
    """Name -> family, of all registered ones; a broken one of another package is left out with a line on stderr."""
    found = {}
    for name, make in usable("family").items():
        try:
            family = make()
        except Exception as error:  # the code of another package may raise anything
            if ours("family", name):
                raise
            leave_out(broken("family", name, f"fails: {one_line(error)}"))
            continue
        if not isinstance(family, Family):
            leave_out(broken("family", name, f"returns {type(family).__name__} instead of a Family"))
            continue
        found[name] = family
    return found


def pipeline_class(source: str) -> str:
    """The class that a pipeline's model_index.json names; that of a hub repository is downloaded once.

    Raises UsageError if there is no index or it names no class.
    """
    if source.startswith(HUB):
        check_repository(source)
        index = _from_hub(source.removeprefix(HUB))
    else:
        index = Path(source) / INDEX
        if not index.is_file():
            raise UsageError(
                f"{source} is not a diffusers pipeline: it is neither a folder with {INDEX} nor a {SINGLE_FILE} file; "
                f"write {HUB}OWNER/REPO for a pipeline on the hub"
            )
    kind = read_config(index).get("_class_name")
    if not isinstance(kind, str) or not kind.isidentifier():
        raise UsageError(f"{index} names no pipeline class (_class_name)")
    return kind


def _from_hub(repository: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, INDEX)
    return Path(found) if isinstance(found, str) else require(repository, INDEX)


def _is_single_file(path: Path) -> bool:
    return path.suffix == SINGLE_FILE and path.is_file()


def _what_is(kind: str) -> str:
    """What kind of pipeline a class is, by diffusers' own lists, for errors."""
    import diffusers
    from diffusers.pipelines import auto_pipeline as lists

    def listed(mapping: dict) -> bool:
        return any(pipeline.__name__ == kind for pipeline in mapping.values())

    if listed(lists.AUTO_TEXT2IMAGE_PIPELINES_MAPPING):
        return "a text-to-image pipeline of a family that no registered plug-in runs"
    if listed(lists.AUTO_INPAINT_PIPELINES_MAPPING) or listed(lists.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING):
        return "which starts from an image and not from text alone"
    if hasattr(diffusers, kind):
        return "which diffusers does not list as making images from text"
    return "which this version of diffusers does not have"
