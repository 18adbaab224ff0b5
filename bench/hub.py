"""The Hugging Face hub: adapters by address (hub:OWNER/REPO[/FOLDER]), and its refusals in plain words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.errors import MissingError, UsageError, one_line

PREFIX = "hub:"
FILES = ("adapter_config.json", "adapter_model.safetensors")


def adapter_folder(source: str) -> Path:
    """The local folder of an adapter; fetches one from the hub into its cache.

    Raises UsageError for a malformed hub address, MissingError, with the cure, where the hub or the adapter cannot be
    reached. A local folder is not checked here.
    """
    if not source.startswith(PREFIX):
        return Path(source)
    owner, _, rest = source.removeprefix(PREFIX).partition("/")
    repository, _, folder = rest.partition("/")
    if not owner or not repository:
        raise UsageError(f"{source!r} should be {PREFIX}OWNER/REPO or {PREFIX}OWNER/REPO/FOLDER")
    from huggingface_hub import snapshot_download

    wanted = [f"{folder}/{name}" if folder else name for name in FILES]
    with asking(f"{owner}/{repository}"):
        home = Path(snapshot_download(f"{owner}/{repository}", allow_patterns=wanted))
    found = home / folder if folder else home
    if not all((found / name).is_file() for name in FILES):
        raise MissingError(f"{source!r} holds no peft adapter ({' and '.join(FILES)})")
    return found


def require(repository: str, file: str) -> None:
    """Raise MissingError, with what is wrong and the cure, if a file of a hub repository cannot be had."""
    from huggingface_hub import hf_hub_download

    with asking(repository):
        hf_hub_download(repository, file)


@contextmanager
def asking(repository: str) -> Iterator[None]:
    """Turn the hub's refusals into MissingErrors that say which it is."""
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
    except (HFValidationError, OSError, ValueError) as error:  # its HTTP errors are OSErrors
        raise MissingError(f"cannot fetch {repository} from the hub: {one_line(error)}") from error
