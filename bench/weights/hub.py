"""The Hugging Face hub: adapters by address (hub:OWNER/REPO[/FOLDER]), and its errors with their cures."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import MissingError, UsageError, one_line

PREFIX = "hub:"
SAFETENSORS = ".safetensors"
CONFIG_FILE, WEIGHTS_FILE = FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The two files of an adapter saved by peft."""
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
"""The only file of an adapter saved by diffusers."""

ADDRESS = re.compile(
    r"(?:(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/|hub:/*|hf:/*)([^/?#]+/[^/?#]+)", re.IGNORECASE
)
"""Other common spellings of hub addresses. A path library may have reduced their double slashes to single ones."""


def adapter_folder(source: str) -> Path:
    """The local folder or file of an adapter; downloads hub adapters into the hub's cache.

    Raises UsageError for a malformed hub address, and MissingError with the cure if the hub or the adapter cannot be
    reached. Local folders are not checked here.
    """
    split = _split(source)
    if not split:
        return Path(source)
    repository, place = split
    if place.endswith(SAFETENSORS):
        found = _fetched(repository, [place]) / place
        if not found.is_file():
            raise MissingError(f"{source!r} does not exist on the hub")
        return found
    # Prefer peft's files: a repository with both formats has every tensor twice, and only one copy is needed.
    for names in (FILES, (DIFFUSERS_FILE,)):
        paths = [f"{place}/{name}" if place else name for name in names]
        found = _fetched(repository, paths) / place
        if all((found / name).is_file() for name in names):
            return found
    raise MissingError(f"{source!r} holds neither a peft adapter ({' and '.join(FILES)}) nor {DIFFUSERS_FILE}")


def pipeline_folder(source: str) -> Path | None:
    """The local folder of a hub pipeline's network, downloaded, or None if the repository holds no pipeline.

    Raises MissingError with the cure if the hub cannot be reached.
    """
    split = _split(source)
    assert split  # callers ask for hub addresses only
    network = [f"{part}/*{kind}" for part in ("transformer", "unet") for kind in (".json", SAFETENSORS)]
    home = _fetched(split[0], ["model_index.json", "scheduler/*.json", *network])
    return home if (home / "model_index.json").is_file() else None


def _split(source: str) -> tuple[str, str] | None:
    """Repository and folder of a hub address; None for a local path. Raises UsageError for a malformed address."""
    if not source.startswith(PREFIX):
        if address := ADDRESS.match(source):
            raise UsageError(f"{source!r} is not a folder: write a hub adapter as {PREFIX}{address[1]}")
        return None
    owner, _, rest = source.removeprefix(PREFIX).partition("/")
    repository, _, place = rest.rstrip("/").partition("/")
    if not owner or not repository or ".." in place.split("/"):
        raise UsageError(f"{source!r} should be {PREFIX}OWNER/REPO or {PREFIX}OWNER/REPO/FOLDER")
    return f"{owner}/{repository}", place


def check_source(source: str, setting: str) -> None:
    """Raise UsageError if an adapter's local folder or file does not exist, or if its hub address is malformed.

    `setting` names the setting with this value in errors. Nothing is downloaded.
    """
    if not _split(source) and not Path(source).exists():
        raise UsageError(f"{setting}: there is no adapter at {source}")


def check_repository(source: str) -> None:
    """Raise UsageError unless `source` has the form hub:OWNER/REPO, with names that the hub allows."""
    if not re.fullmatch(rf"{PREFIX}[^/\s]+/[^/\s]+", source):
        raise UsageError(f"{source!r} should be {PREFIX}OWNER/REPO")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source.removeprefix(PREFIX))
    except HFValidationError as error:
        raise UsageError(f"{source!r} should be {PREFIX}OWNER/REPO without a revision: {one_line(error)}") from error
    refuse_shadowed(source)


def refuse_shadowed(source: str) -> None:
    """Raise UsageError for hub:OWNER/REPO if there is a folder OWNER/REPO: diffusers would read it instead."""
    if Path(repository := source.removeprefix(PREFIX)).is_dir():
        raise UsageError(
            f"{source} is an address on the hub, but there is a folder {repository} here, which diffusers would read "
            f"instead: move it away, or write ./{repository} to use it"
        )


def _fetched(repository: str, names: list[str]) -> Path:
    """The local snapshot of a repository, after downloading those of the named files that exist."""
    from huggingface_hub import snapshot_download

    # Unlike hf_hub_download, this does not fail for files that the repository does not have.
    with asking(repository):
        return Path(snapshot_download(repository, allow_patterns=names))


def model_name(source: str) -> str:
    """A backbone's source as other tools expect it: a hub id, an absolute path if it exists, or else its name."""
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX)
    return os.path.abspath(source) if os.path.exists(source) else source


def require(repository: str, file: str) -> Path:
    """Download a file of a hub repository. Raises MissingError, with the cause and the cure, if that fails."""
    from huggingface_hub import hf_hub_download

    with asking(repository):
        return Path(hf_hub_download(repository, file))


def cached(repository: str, file: str) -> Path | None:
    """A file of a hub repository in the hub's cache; None if it is not downloaded yet."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


@contextmanager
def asking(repository: str) -> Iterator[None]:
    """Turn the hub's errors into MissingErrors with cause and cure, and into UsageError for an invalid name."""
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
        cure = "check the connection, unset HF_HUB_OFFLINE if set, or name a local folder"
        raise MissingError(f"{repository} is not in the hub's cache and the hub cannot be reached: {cure}") from error
    except EntryNotFoundError as error:
        raise MissingError(f"{repository} on the hub does not contain the expected file: {one_line(error)}") from error
    except HFValidationError as error:
        raise UsageError(f"{repository!r} is not a valid repository name on the hub: {one_line(error)}") from error
    except (OSError, ValueError) as error:  # the hub client's HTTP errors are OSErrors
        raise MissingError(f"cannot download {repository} from the hub: {one_line(error)}") from error
