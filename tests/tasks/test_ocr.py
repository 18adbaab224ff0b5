import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from bench.backbones.micro.captions import Brief, draw_scene
from bench.backbones.micro.world import draw
from tasks.ocr import engine
from tasks.ocr.engine import cores, read_with_rapidocr
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


def test_scores_that_the_formula_changed_have_another_name_and_micros_have_not() -> None:
    """Remembered scores are found by it, and stored records hold it."""
    assert Ocr("photo").scorer_name == "ocr-2+rapidocr-3.10.0"
    assert Ocr("micro").scorer_name == "ocr-1+micro"


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


def posters(count: int) -> torch.Tensor:
    """Pictures of 256 pixels with several small signs each, no two alike."""
    rng, font, made = np.random.default_rng(0), ImageFont.load_default(18), []
    for _ in range(count):
        image = Image.fromarray(rng.normal(180, 25, (256, 256, 3)).clip(0, 255).astype(np.uint8))
        draw_on = ImageDraw.Draw(image)
        for place in range(rng.integers(0, 6)):
            x, y = 10 + 120 * (place % 2), 10 + 80 * (place // 2)
            draw_on.rectangle((x - 4, y - 4, x + 100, y + 30), fill="white")
            draw_on.text((x, y), "".join(rng.choice(list("ABCDEFGHJK"), 6)), "black", font)
        made.append(np.asarray(image))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255


def test_several_threads_read_what_one_reads_in_order(monkeypatch) -> None:
    images = posters(12)
    monkeypatch.setattr(engine, "cores", lambda: 1)
    alone = read_with_rapidocr(images)
    assert len(set(alone)) > 6
    assert any(len(text) > 20 for text in alone)
    before = threading.active_count()
    for threads in (2, 5):
        monkeypatch.setattr(engine, "cores", lambda threads=threads: threads)
        engine._engine.cache_clear()  # networks that several threads ask for first
        assert read_with_rapidocr(images) == alone
        assert threading.active_count() == before
    assert read_with_rapidocr(images[:0]) == []


def test_one_picture_at_a_time_is_no_faster_than_its_threads(monkeypatch) -> None:
    """Every thread works on a picture of its own, and no network starts threads beside it."""
    seen: set[int] = set()
    gate = threading.Barrier(3, timeout=60)

    def read(_: torch.Tensor) -> str:
        seen.add(threading.get_ident())
        gate.wait()  # passes only if three read at the same time
        return "x"

    monkeypatch.setattr(engine, "_read", read)
    monkeypatch.setattr(engine, "cores", lambda: 3)
    assert read_with_rapidocr(torch.zeros(6, 3, 8, 8)) == ["x"] * 6
    assert len(seen) == 3
    networks = engine._engine()._load_det_model().session.session.get_session_options()
    assert (networks.intra_op_num_threads, networks.inter_op_num_threads) == (1, 1)


@pytest.mark.parametrize(
    ("together", "threads", "of", "wanted"),
    [
        (None, None, 16, 16), (None, "4", 16, 4), (None, "64", 16, 16), (None, "", 16, 16), (None, "0", 16, 16),
        (None, "many", 16, 16), ("1", "2", 16, 2), ("8", "1", 16, 2), ("8", None, 4, 1),
    ],
)  # fmt: skip
def test_the_cores_of_this_process(together, threads, of: int, wanted: int, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(of)))
    for name, value in (("LOCAL_WORLD_SIZE", together), ("OMP_NUM_THREADS", threads)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cores() == wanted
