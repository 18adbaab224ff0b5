"""The Hugging Face hub: adapters by address (hub:OWNER/REPO[/FOLDER]), and its refusals in plain words."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import MissingError, UsageError, one_line

PREFIX = "hub:"
SAFETENSORS = ".safetensors"
CONFIG_FILE, WEIGHTS_FILE = FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What peft writes of an adapter."""
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers writes of one; it needs no other file."""

ADDRESS = re.compile(
    r"(?:(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hub:/*|hf:/*)([^/?#]+/[^/?#]+)", re.IGNORECASE
)
"""Other ways in which people write an adapter of the hub; / may have been taken for one of a path, and doubled ones for
single."""


def adapter_folder(source: str) -> Path:
    """The local folder, or single file, of an adapter; fetches one from the hub into its cache.

    Raises UsageError for a malformed hub address, MissingError, with the cure, where the hub or the adapter cannot be
    reached. A local folder is not checked here.
    """
    split = _split(source)
    if not split:
        return Path(source)
    repository, place = split
    if place.endswith(SAFETENSORS):
        found = _fetched(repository, [place]) / place
        if not found.is_file():
            raise MissingError(f"{source!r} is not there")
        return found
    # diffusers' file only where there is no other: a repository that holds both holds every tensor twice
    for names in (FILES, (DIFFUSERS_FILE,)):
        found = _fetched(repository, [f"{place}/{name}" if place else name for name in names]) / place
        if all((found / name).is_file() for name in names):
            return found
    raise MissingError(f"{source!r} holds no peft adapter ({' and '.join(FILES)}) and no {DIFFUSERS_FILE}")


def _split(source: str) -> tuple[str, str] | None:
    """Repository and folder of a hub address; None for a local path. Raises UsageError for a malformed address."""
    if not source.startswith(PREFIX):
        if address := ADDRESS.match(source):
            raise UsageError(f"{source!r} is no folder: an adapter of the hub is written {PREFIX}{address[1]}")
        return None
    owner, _, rest = source.removeprefix(PREFIX).partition("/")
    repository, _, place = rest.rstrip("/").partition("/")
    if not owner or not repository or ".." in place.split("/"):
        raise UsageError(f"{source!r} should be {PREFIX}OWNER/REPO or {PREFIX}OWNER/REPO/FOLDER")
    return f"{owner}/{repository}", place


def check_source(source: str, setting: str) -> None:
    """Raise UsageError for an adapter, as `setting` names it, whose local folder or file is not there, or whose hub
    address is malformed. Nothing is fetched."""
    if not _split(source) and not Path(source).exists():
        raise UsageError(f"{setting}: there is no adapter at {source}")


def check_repository(source: str) -> None:
    """Raise UsageError for what is no hub:OWNER/REPO."""
    if not re.fullmatch(rf"{PREFIX}[^/\s]+/[^/\s]+", source):
        raise UsageError(f"{source!r} should be {PREFIX}OWNER/REPO")


def _fetched(repository: str, names: list[str]) -> Path:
    """The local snapshot of a repository, with those of the named files that it has."""
    from huggingface_hub import snapshot_download

    with asking(repository):
        return Path(snapshot_download(repository, allow_patterns=names))


def model_name(source: str) -> str:
    """A backbone's source as other tools find it: the hub id, the absolute path of what lies here, or else its name."""
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX)
    return os.path.abspath(source) if os.path.exists(source) else source


def require(repository: str, file: str) -> Path:
    """A file of a hub repository. Raises MissingError, with what is wrong and the cure, if it cannot be had."""
    from huggingface_hub import hf_hub_download

    with asking(repository):
        return Path(hf_hub_download(repository, file))


@contextmanager
def asking(repository: str) -> Iterator[None]:
    """Turn the hub's refusals into MissingErrors that say which it is; UsageError for what is no repository's name."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        cure = f"accept its licence at https://huggingface.co/{repository}, then log in (hf auth login)"
        raise MissingError(f"{repository} is gated: {cure}") from error
    except RepositoryNotFoundError as error:
        raise MissingError(f"the hub has no {repository}, or it is private: log in (hf auth login)") from error
    except LocalEntryNotFoundError as error:
        cure = "make it reachable, unset HF_HUB_OFFLINE if set, or name a local folder"
        raise MissingError(f"{repository} is not in the hub's cache and the hub cannot be reached: {cure}") from error
    except EntryNotFoundError as error:
        raise MissingError(f"{repository} on the hub is not what is wanted: {one_line(error)}") from error
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is no name of a repository on the hub: {one_line(error)}") from error
    except (OSError, ValueError) as error:  # its HTTP errors are OSErrors
        raise MissingError(f"cannot fetch {repository} from the hub: {one_line(error)}") from error
