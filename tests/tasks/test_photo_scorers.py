"""OCR and PickScore on photographs: prompt files, the engines behind them, folders scored with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.api.task import Prompt
from bench.cli.score import score_folder
from bench.errors import MissingError, UsageError
from bench.scoring.folders import write
from tasks.ocr.task import Ocr
from tasks.pickscore.task import PickScore


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "test.txt").write_text('a sign that says "Open"\n\na wall with "Ünïcode 😀"\n')
    (folder / "train.txt").write_text(
        "".join(f'poster {i} reading "{i}"\n' for i in range(200)) + 'a sign that says "Open"\n'
    )
    return folder


def test_prompts_come_from_files_and_splits_share_none(files: Path) -> None:
    task = Ocr("photo", {"prompts": str(files)})
    texts = {split: [p.text for p in task.prompts(split)] for split in ("train", "validation", "test")}
    assert texts["test"] == ['a sign that says "Open"', 'a wall with "Ünïcode 😀"']
    assert (len(texts["train"]), len(texts["validation"])) == (72, 128)
    assert not set(texts["train"]) & set(texts["validation"])
    assert not set(texts["train"]) & set(texts["test"])
    (files / "validation.txt").write_text('poster 3 reading "3"\n')
    task = Ocr("photo", {"prompts": str(files)})
    assert len(task.prompts("train")) == 199
    assert [p.text for p in task.prompts("validation")] == ['poster 3 reading "3"']


def test_missing_and_unusable_prompt_files_say_what_to_do(files: Path) -> None:
    for cls, name in ((Ocr, "ocr"), (PickScore, "pickscore")):
        with pytest.raises(MissingError, match=rf"scorers\.{name}\.prompts=FOLDER"):
            cls("photo").prompts("test")
        with pytest.raises(UsageError, match="cannot read prompts"):
            cls("photo", {"prompts": "nowhere"}).prompts("test")
    (files / "train.txt").write_text('fine "text"\nno text at all\n')
    with pytest.raises(UsageError, match=r"train\.txt, line 2: an OCR prompt needs text"):
        Ocr("photo", {"prompts": str(files)}).prompts("train")
    with pytest.raises(UsageError, match="leaves no train prompts"):
        PickScore("photo", {"prompts": str(files)}).prompts("train")
    (files / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read prompts"):
        PickScore("photo", {"prompts": str(files)}).prompts("train")


def test_pickscore_is_the_scaled_cosine_over_26(clip_folder: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    sources = {"model": str(clip_folder), "processor": str(clip_folder)}
    task = PickScore("photo", sources)
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    texts = ["a long cat", "dog"]
    scores = task.score(images, [Prompt(text) for text in texts])
    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    processor = AutoImageProcessor.from_pretrained(clip_folder, backend="pil")
    for i, text in enumerate(texts):
        levels = (images[i].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"), **processor(images=levels, return_tensors="pt"))
        raw = float((model.logit_scale.exp() * (out.image_embeds @ out.text_embeds.T)).detach())
        assert scores.metrics["pickscore"][i] == pytest.approx(raw, abs=1e-4)
        assert scores.rewards[i] == pytest.approx(np.clip(raw / 26, 0, 1), abs=1e-5)
    assert "gold" not in scores.metrics
    assert task.scorer_name.startswith("pickscore-1+clip-")
    with pytest.raises(MissingError, match="no CLIP model at"):
        PickScore("photo", {"model": "/nowhere", "processor": str(clip_folder)}).score(
            images, [Prompt("a"), Prompt("b")]
        )


def test_folders_are_scored_by_every_task(clip_folder: Path, tmp_path: Path, capsys) -> None:
    from PIL import Image, ImageDraw, ImageFont

    sign = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(sign).text((40, 40), "HELLO", "black", ImageFont.load_default(48))
    image = torch.from_numpy(np.asarray(sign).copy()).permute(2, 0, 1)[None].float() / 255
    write(tmp_path / "made", [Prompt('a sign that says "hello"', "sign")], image, [(0, 0)])
    score_folder("ocr", tmp_path / "made", [], "photo", 8)
    assert "rapidocr-3.10.0" in capsys.readouterr().out
    line = json.loads((tmp_path / "made" / "results-ocr.jsonl").read_text())
    assert (line["exact"], line["edit"], line["prompt"]) == (1, 1, 'a sign that says "hello"')
    settings = [f"scorers.pickscore.{key}={clip_folder}" for key in ("model", "processor")]
    score_folder("pickscore", tmp_path / "made", settings, "photo", 8)
    assert "pickscore" in capsys.readouterr().out
