"""Encoded prompts of any family: what is done to a batch is done to every tensor, also on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.backbones.conditioning import Conditioning
from bench.backbones.embeddings import Embeddings

CPU = torch.device("cpu")


def encoded(seed: int, batch: int = 1) -> Conditioning:
    """A sequence with a mask, token ids and a pooled vector."""
    g = torch.Generator().manual_seed(seed)
    return Conditioning(
        {
            "sequence": torch.randn(batch, 5, 3, generator=g),
            "mask": torch.rand(batch, 5, generator=g) < 0.5,
            "ids": torch.randint(0, 9, (batch, 5, 2), generator=g),
            "pooled": torch.randn(batch, 4, generator=g).bfloat16(),
        }
    )


def equal(a: Conditioning, b: Conditioning) -> bool:
    """Bit for bit, with types."""
    same = lambda name: a[name].dtype == b[name].dtype and torch.equal(a[name], b[name])
    return a.tensors.keys() == b.tensors.keys() and all(map(same, a.tensors))


def test_a_batch_is_one_in_every_tensor() -> None:
    both = Conditioning.cat([encoded(0), encoded(1, batch=2)])
    assert len(both) == 3
    assert equal(both[1:], encoded(1, batch=2))
    assert equal(both[[0]], encoded(0))
    assert equal(both[torch.tensor([True, False, False])], encoded(0))
    assert equal(both.repeat(2), Conditioning.cat([both, both]))
    assert both.bytes == 3 * (5 * 3 * 4 + 5 + 5 * 2 * 8 + 4 * 2)


def test_what_is_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in batch size"):
        Conditioning({"sequence": torch.zeros(2, 3), "pooled": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match="different tensors"):
        Conditioning.cat([Conditioning({"sequence": torch.zeros(1, 3)}), encoded(0)])


def test_every_tensor_is_kept_on_disk(tmp_path: Path) -> None:
    Embeddings(tmp_path, CPU).put("a cat", encoded(0))
    again = Embeddings(tmp_path, CPU)
    found = again.get("a cat")
    assert found and equal(found, encoded(0))
    assert again.get("a dog") is None


def test_files_of_two_tensors_are_as_they_always_were(tmp_path: Path) -> None:
    """Prompts that were encoded before are read, and written to the same bytes."""
    pair = Conditioning({name: encoded(0)[name] for name in ("pooled", "sequence")})
    Embeddings(tmp_path / "new", CPU).put("a cat", pair)
    (file,) = (tmp_path / "new").rglob("*.safetensors")
    old = tmp_path / "old" / file.relative_to(tmp_path / "new")
    old.parent.mkdir(parents=True)
    save_file({"sequence": pair["sequence"], "pooled": pair["pooled"]}, old, {"prompt": "a cat"})
    assert file.read_bytes() == old.read_bytes()
    found = Embeddings(tmp_path / "old", CPU).get("a cat")
    assert found and equal(found, pair)


def test_a_file_without_tensors_is_no_encoded_prompt(tmp_path: Path) -> None:
    store = Embeddings(tmp_path, CPU)
    store.put("a cat", encoded(0))
    (file,) = tmp_path.rglob("*.safetensors")
    save_file({}, file, {"prompt": "a cat"})
    assert Embeddings(tmp_path, CPU).get("a cat") is None


def test_files_of_encoded_prompts_have_a_limit(tmp_path: Path, monkeypatch) -> None:
    """What exceeds it is encoded again; what an earlier process wrote counts."""
    Embeddings(tmp_path, CPU).put("a cat", encoded(0))
    (file,) = tmp_path.rglob("*.safetensors")
    monkeypatch.setattr("bench.backbones.embeddings.DISK", 2 * file.stat().st_size + 20)
    store = Embeddings(tmp_path, CPU)
    for number, prompt in enumerate(("a dog", "a cow")):
        store.put(prompt, encoded(number))
        assert store.get(prompt) is not None  # in memory
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    again = Embeddings(tmp_path, CPU)
    assert [again.get(prompt) is not None for prompt in ("a cat", "a dog", "a cow")] == [True, True, False]


def of_length(length: int) -> Conditioning:
    """One prompt that is as long as it is, and a vector that is not."""
    tensors = {"sequence": torch.full((1, length, 2), float(length)), "pooled": torch.ones(1, 3)}
    return Conditioning(tensors, {"sequence": (length,)})


def test_prompts_of_different_lengths_are_padded_to_the_longest(tmp_path: Path) -> None:
    batch = Conditioning.cat([of_length(2), of_length(4), of_length(1)])
    assert batch.lengths == {"sequence": (2, 4, 1)}
    assert batch["sequence"].shape == (3, 4, 2) and batch["pooled"].shape == (3, 3)
    for row, length in zip(batch["sequence"], (2, 4, 1)):
        assert torch.equal(row[:length], torch.full((length, 2), float(length))) and not row[length:].any()
    mask = torch.tensor([False, True, True])
    for index in ([1, 2], slice(1, None), torch.tensor([1, 2]), mask):
        assert batch[index].lengths == {"sequence": (4, 1)}
        assert torch.equal(batch[index]["sequence"], batch["sequence"][1:])
    assert batch.repeat(2).lengths == {"sequence": (2, 4, 1, 2, 4, 1)}
    assert batch.joined(guidance=torch.ones(3)).lengths == batch.lengths
    assert Conditioning.cat([batch, of_length(6)]).lengths == {"sequence": (2, 4, 1, 6)}
    Embeddings(tmp_path, CPU).put("a cat", of_length(3))
    read = Embeddings(tmp_path, CPU).get("a cat")
    assert read is not None and read.lengths == {"sequence": (3,)} and equal(read, of_length(3))
    with pytest.raises(ValueError, match="different tensors"):
        Conditioning.cat([of_length(2), Conditioning(of_length(2).tensors)])
