"""Adapters by hub address: what is asked of the hub, and what a user is told where it cannot answer."""

from pathlib import Path

import pytest

from bench.errors import MissingError, UsageError
from bench.hub import FILES, adapter_folder


def test_local_folders_pass() -> None:
    assert adapter_folder("some/folder") == Path("some/folder")


def test_a_folder_of_a_repository_is_fetched(tmp_path: Path, monkeypatch) -> None:
    asked = {}
    (tmp_path / "teacher" / "lora").mkdir(parents=True)
    for name in FILES:
        (tmp_path / "teacher" / "lora" / name).write_text("")

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked[repository] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert adapter_folder("hub:owner/repo/teacher/lora") == tmp_path / "teacher" / "lora"
    assert asked == {"owner/repo": [f"teacher/lora/{name}" for name in FILES]}
    with pytest.raises(MissingError, match="holds no peft adapter"):
        adapter_folder("hub:owner/repo/other")


def test_what_cannot_be_fetched_names_the_cure() -> None:
    with pytest.raises(MissingError, match=r"cannot fetch 'hub:owner/repo'.*name a local folder"):
        adapter_folder("hub:owner/repo")
    for wrong in ("hub:", "hub:owner", "hub:/repo"):
        with pytest.raises(UsageError, match="should be hub:OWNER/REPO"):
            adapter_folder(wrong)
