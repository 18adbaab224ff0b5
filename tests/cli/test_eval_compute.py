"""`bench eval` draws as runs on the same backbone do, and says where that is not the model's own way."""

import pytest

from bench.cli import evaluate
from bench.config.resolve import describe, resolve
from bench.errors import BenchError, UsageError

LARGE = ["compute.precision=float32", "compute.resolution=256"]


@pytest.mark.parametrize("backbone", ["sd3", "micro"])
@pytest.mark.parametrize("overrides", [[], ["compute.precision=float16"], LARGE], ids=" ".join)
def test_pictures_are_drawn_as_a_run_draws_them(monkeypatch, backbone: str, overrides: list[str]) -> None:
    if backbone == "micro":
        overrides = [text for text in overrides if "resolution" not in text]
    asked = []

    def load(name, device, compute, cache):
        asked.append(compute)
        raise BenchError("loaded")

    monkeypatch.setattr(evaluate, "load_backbone", load)
    monkeypatch.setattr(evaluate, "load_tasks", lambda *_: {})
    monkeypatch.setattr(evaluate, "load_features", lambda *_: None)
    with pytest.raises(BenchError, match="loaded"):
        evaluate.score_adapter("base", ["geneval"], backbone, "1", 2, "test", overrides, None, None)
    assert asked == [resolve("single_task", ["geneval"], backbone=backbone, overrides=overrides).compute]


@pytest.mark.parametrize(
    ("backbone", "overrides", "said"),
    [
        ("sd3", [], ", 512 pixels, bfloat16"),
        ("sd3", ["compute.resolution=1024", "compute.precision=float32"], ""),
        ("sd3", ["compute.resolution=null"], ", bfloat16"),
        ("micro", [], ""),
        ("micro", ["compute.precision=bfloat16"], ", bfloat16"),
    ],
)
def test_the_title_says_what_is_not_the_model_s_own(backbone: str, overrides: list[str], said: str) -> None:
    descriptor = describe(backbone)
    compute = descriptor.defaults().get("compute", {})
    view = evaluate.view_settings(overrides, ("geneval",), ("compute",), descriptor.world, compute)
    assert evaluate._drawn_as(view.compute, descriptor) == said


@pytest.mark.parametrize(("backbone", "resolution"), [("micro", 64), ("sd3", 500)])
def test_a_resolution_that_cannot_be_is_refused_before_anything_loads(backbone: str, resolution: int) -> None:
    with pytest.raises(UsageError, match=r"compute\.resolution"):
        evaluate.score_adapter(
            "base", ["geneval"], backbone, "1", 2, "test", [f"compute.resolution={resolution}"], None, None
        )
