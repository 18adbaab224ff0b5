"""What a teacher's folder or hub address holds: an adapter, or a whole model. This file does not import torch."""

from dataclasses import dataclass
from pathlib import Path

from bench.backbones.adapter_files import adapter_hash
from bench.backbones.pipeline_files import (
    NETWORKS,
    index_of,
    network_folder,
    require_whole,
    stored_parameters,
    weight_files,
)
from bench.config.resolve import TRAINED_HERE
from bench.errors import MissingError, UsageError
from bench.hashing import sampled_hash
from bench.weights.checkpoints import read_config, refuse_quantised
from bench.weights.hub import adapter_folder, pipeline_folder


@dataclass(frozen=True)
class Teacher:
    """A resolved teacher: its task, its folder and the hash of its weights."""

    task: str
    folder: Path
    hash: str
    whole: bool = False
    """Whether it is a whole model and not an adapter."""

    @property
    def model(self) -> str:
        """The name under which it is loaded on the backbone."""
        return f"teacher-{self.task}"


def find_teacher(task: str, source: str) -> Teacher:
    """The teacher in a folder or at a hub address: an adapter, or else a pipeline or a network in diffusers' format.

    A hub repository is downloaded. Raises UsageError or MissingError naming what is missing.
    """
    try:
        place = adapter_folder(source)
    except MissingError:  # only from the hub
        pipeline = pipeline_folder(source)
        if pipeline is None:
            raise
        place = pipeline
    network = network_folder(place)
    if network is None:
        return Teacher(task, place, adapter_hash(place))
    config = network / "config.json"
    if not config.is_file():
        _refuse_without_network(place)
    refuse_quantised(read_config(config), config)
    return Teacher(task, network, sampled_hash([*weight_files(network), config]), whole=True)


def _refuse_without_network(place: Path) -> None:
    """Raise UsageError for a pipeline whose index names no network, or MissingError for an incomplete one."""
    index = index_of(str(place))
    for name in NETWORKS:
        if name in index:
            require_whole(place / name)
    raise UsageError(
        f"{place} holds a {str(index.get('_class_name'))[:80]}, which has no transformer or UNet: a teacher is "
        "an adapter, or a pipeline or network of the backbone's class"
    )


def whole_teachers(sources: dict[str, str]) -> dict[str, int]:
    """task -> number of parameters of its teacher, for sources that are local folders of whole models."""
    named = {task: Path(source) for task, source in sources.items() if source not in TRAINED_HERE}
    found = {task: network_folder(place) for task, place in named.items()}
    return {task: stored_parameters(folder) for task, folder in found.items() if folder}
