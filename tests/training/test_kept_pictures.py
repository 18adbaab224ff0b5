"""Pictures that a run keeps: its own, the base's and the teachers', from the same prompts and noise."""

from pathlib import Path

import pytest

from bench.config.resolve import resolve
from bench.config.spec import Spec
from bench.scoring.folders import read
from bench.training.execute import Session, execute

pytestmark = pytest.mark.usefixtures("few_prompts")


def spec(seed: int, pictures: bool) -> Spec:
    overrides = ["budget.updates=1", "evaluation.steps=1", "evaluation.split=validation"]
    return resolve("opd_analytic", ["ocr"], seed, overrides=[*overrides, f"evaluation.pictures={pictures}"])


def test_every_model_of_the_summary_has_its_pictures(tmp_path: Path) -> None:
    root = tmp_path / "results"
    plain = execute(spec(0, pictures=False), Session(root))
    assert "pictures" not in plain
    assert not list((root / "cache").glob("pictures-*"))  # the evaluations are known now, the pictures are not
    kept = execute(spec(0, pictures=True), Session(root))
    assert kept["models"] == plain["models"]
    assert kept["pictures"].keys() == kept["models"].keys() == {"base", "teacher ocr", "student"}
    found = {model: read(root / places["ocr"]) for model, places in kept["pictures"].items()}
    prompts = [sample.prompt.text for sample in found["student"]]
    assert len(prompts) == len(kept["models"]["student"]["ocr"]["rows"]["exact"])
    for samples in found.values():
        assert [sample.prompt.text for sample in samples] == prompts
    first = {model: samples[0].path.read_bytes() for model, samples in found.items()}
    assert first["base"] != first["teacher ocr"] != first["student"]

    # Another seed has pictures of its own and shares the references'.
    made = {p: p.stat().st_mtime_ns for p in (root / "cache").rglob("*.png")}
    other = execute(spec(1, pictures=True), Session(root))
    assert {p: p.stat().st_mtime_ns for p in (root / "cache").rglob("*.png")} == made
    for model in ("base", "teacher ocr"):
        assert other["pictures"][model] == kept["pictures"][model]
    assert other["pictures"]["student"] != kept["pictures"]["student"]
    assert not list((root / "cache").glob(".pictures*"))
