"""A pipeline's configurations, of a folder or a hub address, without loading a model."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.backbones.diffusion_scheduler import DiffusionFields, diffusion_fields, diffusion_scheduler_in
from bench.backbones.flow_scheduler import SchedulerFields, flow_scheduler_in
from bench.backbones.pipeline.family import PipelineFamily
from bench.backbones.pipeline_files import config_file, index_of, require_whole, says_null
from bench.backbones.scheduler_files import FILE as SCHEDULER
from bench.config.compute import Compute
from bench.config.families import INDEX
from bench.errors import MissingError, UsageError, one_line
from bench.hashing import content_hash, sampled_hash, text_hash
from bench.weights.checkpoints import read_config
from bench.weights.hub import PREFIX, SAFETENSORS, cached, require


@dataclass(frozen=True)
class Configuration:
    """What is known about a pipeline without loading it."""

    fields: Any
    """The family's `fields` of the network."""
    network: dict[str, Any]
    vae: dict[str, Any]
    scheduler: SchedulerFields | DiffusionFields
    options: dict[str, Any]
    """The pipeline's model_index.json, or the options in it that are known."""
    without: tuple[str, ...]
    """Text encoders and tokenizers that the pipeline says it does not have."""
    exact: bool
    """Whether it was read from files; otherwise it is what is known about a published model."""

    def side(self, family: PipelineFamily, resolution: int | None) -> int:
        """Latent pixels along one side at a resolution in image pixels. Raises UsageError for one that does not fit."""
        if resolution is None:
            return family.latent_side(self.fields)
        unit = family.vae.downsampling(self.vae) * family.patch(self.fields)
        if resolution % unit:
            raise UsageError(f"compute.resolution must be a multiple of {unit}, not {resolution}")
        return resolution // family.vae.downsampling(self.vae)

    def checked_side(self, family: PipelineFamily, resolution: int | None, compute: Compute) -> int:
        """As `side`. Also raises UsageError for what the network does not take."""
        side = self.side(family, resolution)
        family.check(self.fields, side, family.tokens(compute))
        return side


def require_parts(family: PipelineFamily, home: Path, without: tuple[str, ...]) -> None:
    """Raise MissingError unless a pipeline's folder has the files of the network, the VAE and the text encoders.

    Text encoders are loaded late, and not at all if the cache has every prompt: a run should not begin without them.
    """
    for part in (family.folder, "vae", *family.encoders):
        if part not in without:
            require_whole(home / part)


def is_file(source: str) -> bool:
    """Whether a model is given as a single file."""
    return source.endswith(SAFETENSORS)


def address_of(family: PipelineFamily, source: str) -> str:
    """The folder or hub:OWNER/REPO of the pipeline at `source`: of a single file, that of the model's other parts."""
    if not is_file(source):
        return source
    assert family.file is not None  # or no file would be of the family
    beside = Path(source).parent
    return str(beside) if (beside / "model_index.json").is_file() else family.file.home(Path(source))


def home_of(family: PipelineFamily, source: str) -> str:
    """The folder or hub id of the pipeline at `source`."""
    return address_of(family, source).removeprefix(PREFIX)


def configuration(family: PipelineFamily, source: str) -> Configuration:
    """The configurations of the pipeline at `source`.

    A published model is not downloaded for this. Raises UsageError for configurations with missing or invalid values,
    and MissingError for files that are missing or cannot be downloaded.
    """
    home, parts = home_of(family, source), (family.folder, "vae")
    known = family.published.get(address_of(family, source))
    scheduler: SchedulerFields | DiffusionFields
    needed = (INDEX, SCHEDULER, *(f"{part}/config.json" for part in parts))
    if known and not all(cached(home, name) for name in needed):
        network, vae = known.network, known.vae
        if family.diffusion:
            scheduler = diffusion_fields(known.scheduler, known.scheduler["_class_name"])
        else:
            scheduler = SchedulerFields.model_validate(known.scheduler)
    else:
        # First of all, so that a pipeline of another class is not told to correct what is right for it.
        if (name := index_of(home).get("_class_name")) != family.pipeline:
            raise UsageError(f"{home} holds a {str(name)[:80]}; family {family.name} runs {family.pipeline}")
        try:
            network, vae = (read_config(config_file(home, part)) for part in parts)
        except OSError as error:
            raise MissingError(f"{home} is not a complete pipeline: {one_line(error)}") from error
        read = diffusion_scheduler_in if family.diffusion else flow_scheduler_in
        local = Path(home).is_dir()
        scheduler = read(Path(home) / SCHEDULER if local else require(home, SCHEDULER), family.followed())
        known = None
    options = known.options if known else index_of(home)
    without = _left_out(family, options)
    if not known:
        _check_classes(family, home, options, network, vae, without)
    fields = validated(f"{home}/{family.folder}", network, family.fields)
    latents = family.vae.channels(validated(f"{home}/vae", vae, family.vae.fields))
    if (channels := family.latent_channels(fields)) != latents:
        raise UsageError(
            f"{home}: the {family.folder} takes {channels} channels but the VAE's latents have {latents}: only models "
            "that start from text alone are supported, not inpainting or editing ones"
        )
    return Configuration(fields, network, vae, scheduler, options, without, exact=not known)


def _left_out(family: PipelineFamily, index: dict[str, Any]) -> tuple[str, ...]:
    """The text encoders that a pipeline's index has null for, and their tokenizers."""
    lacking = {name: tokenizer for name, tokenizer in family.nullable.items() if says_null(index, name)}
    return (*lacking, *lacking.values())


def _check_classes(
    family: PipelineFamily, home: str, index: dict[str, Any], network: dict[str, Any], vae: dict[str, Any],
    without: tuple[str, ...],
) -> None:  # fmt: skip
    """Raise UsageError if a pipeline's files name another class than the family loads."""
    encoders = {name: kind for name, kind in family.encoders.items() if name not in without}
    expected = {family.folder: family.network, "vae": family.vae.kind, **encoders}
    for part in (*family.encoders, *family.tokenizers):
        if part in index and index[part] is None:
            raise UsageError(f"{home}/model_index.json has null as {part}, where diffusers reads [null, null]")
    own = {family.folder: network.get("_class_name"), "vae": vae.get("_class_name")}
    for part, kind in expected.items():
        entry = index.get(part)
        in_index = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        for file, named in (("model_index.json", in_index), (f"{part}/config.json", own.get(part))):
            former = family.network_before if part == family.folder else ()
            if named is not None and named not in (kind, *former):
                raise UsageError(f"{home}/{file} names {str(named)[:80]} as {part}; family {family.name} runs {kind}")
        if part in index and in_index is None:
            raise UsageError(f"{home}/model_index.json names no {part}, without which family {family.name} cannot run")


def validated(folder: str, config: dict, kind: type[BaseModel]) -> Any:
    """The fields of a model's configuration. Raises UsageError for missing or invalid values, naming the first."""
    try:
        return kind.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, found = first["loc"][0], repr(first["input"])[:40]
        problem = "is missing" if first["type"] == "missing" else f"is {found}: {first['msg']}"
        raise UsageError(f"{folder}/config.json: {field} {problem}") from error


@cache
def fingerprint(family: PipelineFamily, source: str) -> str:
    """Hash of a local pipeline's weights and configurations, or of a hub id; cached, since files are large."""
    if is_file(source):
        address = address_of(family, source)
        rest = fingerprint(family, address) if Path(address).is_dir() else address.removeprefix(PREFIX)
        return text_hash([sampled_hash([Path(source)]), rest])
    folder = Path(source)
    if not folder.is_dir():
        return text_hash(source)
    return sampled_hash(path for path in folder.rglob("*") if path.suffix in (SAFETENSORS, ".json"))


def tokenizers_hash(home: Path, names: tuple[str, ...]) -> str:
    """A suffix for a folder's name with the hash of the tokenizers' files that `fingerprint` omits; may be empty."""
    files = {name: [path for path in (home / name).glob("*") if path.suffix in (".txt", ".model")] for name in names}
    if not any(files.values()):
        return ""
    return f"-{text_hash({name: content_hash(paths) for name, paths in files.items()})}"
