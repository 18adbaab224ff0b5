"""Adapters by hub address: what is asked of the hub, and what a user is told where it cannot answer."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.backbones.sd3 import descriptor
from bench.backbones.teacher_files import find_teacher
from bench.config.resolve import resolve
from bench.errors import MissingError, UsageError
from bench.training.teacher_sets import check_teachers
from bench.weights.hub import DIFFUSERS_FILE, FILES, adapter_folder


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
    with pytest.raises(MissingError, match="holds neither a peft adapter"):
        adapter_folder("hub:owner/repo/other")


def test_diffusers_files_are_fetched_where_there_is_no_peft_adapter(tmp_path: Path, monkeypatch) -> None:
    asked = []

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / DIFFUSERS_FILE).write_text("")
    (tmp_path / "lora" / "style.safetensors").write_text("")
    assert adapter_folder("hub:owner/repo/lora") == tmp_path / "lora"
    assert asked == [[f"lora/{name}" for name in FILES], [f"lora/{DIFFUSERS_FILE}"]]
    asked.clear()
    assert adapter_folder("hub:owner/repo/lora/style.safetensors") == tmp_path / "lora" / "style.safetensors"
    assert asked == [["lora/style.safetensors"]]
    with pytest.raises(MissingError, match="does not exist on the hub"):
        adapter_folder("hub:owner/repo/lora/other.safetensors")
    with pytest.raises(MissingError, match=f"holds neither a peft adapter .* nor {DIFFUSERS_FILE}"):
        adapter_folder("hub:owner/repo")
    for name in FILES:
        (tmp_path / name).write_text("")
    asked.clear()
    assert adapter_folder("hub:owner/repo") == tmp_path
    assert asked == [list(FILES)]


def test_a_teacher_on_the_hub_may_be_a_pipeline(tmp_path: Path, monkeypatch) -> None:
    """Only its network and what says how it is called are downloaded, and only if the repository holds no adapter."""
    asked = []

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(MissingError, match="holds neither a peft adapter"):
        find_teacher("ocr", "hub:owner/repo")
    network = tmp_path / "transformer"
    network.mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    (network / "config.json").write_text("{}")
    (network / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    teacher = find_teacher("ocr", "hub:owner/repo")
    assert (teacher.folder, teacher.whole) == (network, True)
    network_files = ["transformer/*.json", "transformer/*.safetensors", "unet/*.json", "unet/*.safetensors"]
    assert asked[-1] == ["model_index.json", "scheduler/*.json", *network_files]
    (network / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    with pytest.raises(UsageError, match="quantised by bitsandbytes"):
        find_teacher("ocr", "hub:owner/repo")


def test_what_cannot_be_fetched_names_the_cure() -> None:
    with pytest.raises(MissingError, match=r"owner/repo is not in the hub's cache .*name a local folder"):
        adapter_folder("hub:owner/repo")
    for wrong in ("hub:", "hub:owner", "hub:/repo", "hub:owner/repo/../other"):
        with pytest.raises(UsageError, match="should be hub:OWNER/REPO"):
            adapter_folder(wrong)


@pytest.mark.parametrize(
    "written",
    [
        "https://huggingface.co/a/b",
        "https:/huggingface.co/a/b/ocr",
        "http://www.huggingface.co/a/b/tree/main",
        "huggingface.co/a/b",
        "hf.co/a/b",
        "HUB:a/b",
        "hf://a/b",
    ],
)
def test_an_address_of_the_hub_in_other_words_is_wrong_use(written: str) -> None:
    with pytest.raises(UsageError, match=r"write a hub adapter as hub:a/b$"):
        adapter_folder(written)
    spec = resolve("opd_analytic", ["ocr"])
    with pytest.raises(UsageError, match=r"write a hub adapter as hub:a/b$"):
        check_teachers([spec.model_copy(update={"teachers": {"ocr": written}})])


@pytest.mark.parametrize("repository", ["a b/c", "a/b..c", "a/-b", "a/" + "b" * 200])
def test_what_cannot_be_a_repository_s_name_is_wrong_use(repository: str) -> None:
    with pytest.raises(UsageError, match="is not a valid repository name on the hub") as refused:
        adapter_folder(f"hub:{repository}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (
            "GatedRepoError",
            r"owner/repo is gated: accept its licence at https://huggingface\.co/owner/repo, then log in",
        ),
        ("RepositoryNotFoundError", r"the hub has no owner/repo, or it is private: log in"),
        ("RemoteEntryNotFoundError", r"owner/repo on the hub does not contain the expected file"),
        ("HfHubHTTPError", r"cannot download owner/repo from the hub: out of order"),
    ],
)
def test_every_refusal_of_the_hub_is_told_apart(monkeypatch, refusal: str, said: str) -> None:
    import huggingface_hub.errors

    kind = getattr(huggingface_hub.errors, refusal)
    answer = SimpleNamespace(status_code=403, headers={}, request=None)

    def refuse(*_, **__) -> None:
        raise kind("out of order", response=answer)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(MissingError, match=said):
        adapter_folder("hub:owner/repo")
    with pytest.raises(MissingError, match=said):
        descriptor("hub:owner/repo").load("cpu")
