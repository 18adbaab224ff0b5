"""Pretraining in small: killed at any moment, it ends in the same weights."""

import sys
from pathlib import Path

import pytest

from bench.backbones.micro import pretrain

# 0.002 of the samples: 16 updates of the first stage, 5 of the second.
ARGUMENTS = ["pretrain", "--share", "0.002", "--out"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(tmp_path_factory.mktemp("whole"), monkeypatch)


def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    monkeypatch.setattr(pretrain, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(sys, "argv", [*ARGUMENTS, str(folder)])
    pretrain.main()
    return {p.name: p.read_bytes() for p in (folder / "base").rglob("*.safetensors")}


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [10, 16, 19])
def test_a_killed_pretraining_ends_in_the_same_weights(dies_at: int, whole, tmp_path, monkeypatch) -> None:
    assert len(whole) == 3
    update = pretrain.Trainer.update

    def dying(trainer, *arguments):
        if trainer.step == dies_at:
            raise KeyboardInterrupt
        return update(trainer, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(pretrain.Trainer, "update", dying)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", monkeypatch)
    assert run(tmp_path / "killed", monkeypatch) == whole
