"""Adapter folders by local path or, written hub:OWNER/REPO[/FOLDER], from the Hugging Face hub."""

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
    from huggingface_hub.errors import HfHubHTTPError

    wanted = [f"{folder}/{name}" if folder else name for name in FILES]
    cure = "make the hub reachable, accept the model's licence, or name a local folder"
    try:
        home = Path(snapshot_download(f"{owner}/{repository}", allow_patterns=wanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise MissingError(f"cannot fetch {source!r}: {one_line(error)}; {cure}") from error
    found = home / folder if folder else home
    if not all((found / name).is_file() for name in FILES):
        raise MissingError(f"{source!r} holds no peft adapter ({' and '.join(FILES)}); {cure}")
    return found
