import numpy as np
import pytest
import torch

from bench.backbones.micro.captions import Brief, draw_scene
from bench.backbones.micro.world import draw
from tasks.ocr.engine import read_with_rapidocr
from tasks.ocr.formula import edit_distance, ocr_reward, target_text
from tasks.ocr.task import Ocr


@pytest.mark.parametrize(
    ("read", "target", "reward"),
    [
        ("Hello", "Hello", 1.0),
        ("hello world", "HelloWorld", 1.0),
        ("xxHELLOxx", "hello", 1.0),
        ("HelloWorld", "World Hello", 0.2),
        ("", "abc", 0.0),
        ("zzzzzzzzzzzz", "abc", 0.0),
        ("abd", "abc", 2 / 3),
    ],
)
def test_formula(read: str, target: str, reward: float) -> None:
    assert ocr_reward(read, target) == pytest.approx(reward)


def test_edit_distance_against_known_pairs() -> None:
    pairs = [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2)]
    assert [edit_distance(a, b) for a, b, _ in pairs] == [d for *_, d in pairs]
    assert all(edit_distance(b, a) == d for a, b, d in pairs)


@pytest.mark.parametrize("prompt", ["a sign", 'a sign that says ""', 'a sign that says "  "', 'half a "quote'])
def test_prompt_without_text_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="quotes"):
        target_text(prompt)


def signs(count: int, noise: float = 0.0) -> tuple[torch.Tensor, list]:
    rng = np.random.default_rng(5)
    prompts = Ocr("micro").prompts("test")[:count]
    images = np.stack([draw(draw_scene(Brief("sign", sign=target_text(p.text)), rng)) for p in prompts])
    noisy = (images + noise * rng.normal(size=images.shape)).clip(0, 1).astype(np.float32)
    return torch.from_numpy(noisy).permute(0, 3, 1, 2), prompts


@pytest.mark.parametrize(("noise", "floor"), [(0.0, 1.0), (0.15, 0.9)])
def test_matcher_reads_rendered_signs(noise: float, floor: float) -> None:
    images, prompts = signs(96, noise)
    assert Ocr("micro").score(images, prompts).metrics["exact"].mean() >= floor


def test_rapidocr_agrees_on_rendered_signs() -> None:
    images, prompts = signs(12)
    read = read_with_rapidocr(images)
    assert sum(r.lower() == target_text(p.text).lower() for r, p in zip(read, prompts)) >= 9
    assert read_with_rapidocr(torch.zeros(1, 3, 32, 32)) == [""]


def test_splits_are_disjoint() -> None:
    task = Ocr("micro")
    texts = [p.text for split in ("train", "validation", "test") for p in task.prompts(split)]
    assert len(texts) == len(set(texts))
    assert len(task.prompts("test")) >= 144


def test_audit_is_the_real_engine() -> None:
    images, prompts = signs(12)
    shown = Ocr("micro").audit(images, prompts)
    assert set(shown) == {"rapidocr_exact", "rapidocr_edit"}
    assert shown["rapidocr_exact"].mean() >= 0.75
    assert shown["rapidocr_edit"].mean() >= shown["rapidocr_exact"].mean()
    assert Ocr("micro").audit(torch.zeros(2, 3, 32, 32), prompts[:2])["rapidocr_exact"].tolist() == [0, 0]
