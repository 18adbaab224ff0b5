"""Feature spaces: micro's attributes are exactly what was drawn, photographs' features are CLIP's, settings are checked."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.api.task import Prompt
from bench.backbones.micro.captions import caption, draw_brief, draw_scene
from bench.backbones.micro.reader import views
from bench.backbones.micro.world import Scene, draw
from bench.config.resolve import resolve, teacher_spec
from bench.config.scorers import view_settings
from bench.errors import MissingError, UsageError
from bench.scoring.loading import load_features
from tasks.clip import with_processor
from tasks.features.photo import PhotoFeatures
from tasks.geneval.colours import ClipColourJudge


def image_of(scene: Scene) -> torch.Tensor:
    return torch.from_numpy(draw(scene)).permute(2, 0, 1)


def test_attributes_of_micro_are_those_of_the_scene() -> None:
    """Of three hundred scenes: all grounds, and everything that the caption leaves open of near and distant shapes."""
    rng, space = np.random.default_rng(0), load_features("micro", {})
    kinds = ("single_object", "colors", "two_object", "counting", "position", "color_attr", "sign", "illustration")
    scenes, prompts = [], []
    for kind in (kinds * 40)[:300]:
        brief = draw_brief(rng, kind)
        scenes.append(draw_scene(brief, rng, distant=0.5))
        prompts.append(Prompt(caption(brief)))
    found = space.attributes(torch.stack([image_of(scene) for scene in scenes]), prompts)
    assert found["ground"].tolist() == [scene.ground for scene in scenes]
    for place, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        seen = {name: str(labels[place]) for name, labels in found.items()}
        things = sorted(scene.things, key=lambda thing: (thing.top, thing.left))
        if not things:
            assert seen == {"ground": scene.ground, "distance": "", "placement": "", "colour": ""}
            continue
        assert seen["distance"] == ("distant" if scene.distant else "near"), prompt
        assert seen["placement"] == " ".join(f"{thing.left},{thing.top}" for thing in things)
        named = any(thing.colour in prompt.text for thing in things)
        assert seen["colour"] == ("" if named else things[0].colour)


def test_an_empty_image_shows_nothing() -> None:
    empty = image_of(Scene("navy"))[None]
    assert views(empty) == [("", [])]
    found = load_features("micro", {}).attributes(empty, [Prompt("a photo of a star")])
    assert {name: labels.tolist() for name, labels in found.items()} == {
        "ground": ["navy"], "distance": ["nothing"], "placement": ["nothing"], "colour": ["nothing"],
    }  # fmt: skip


def test_features_of_micro_tell_images_apart() -> None:
    rng, space = np.random.default_rng(1), load_features("micro", {})
    scenes = [draw_scene(draw_brief(rng, "illustration"), rng) for _ in range(50)]
    features = space.features(torch.stack([image_of(scene) for scene in scenes]))
    assert features.shape == (50, 1024) and not space.cosine
    assert 0.5 < float(features.square().mean()) < 2
    assert torch.pdist(features).min() > 0


def test_features_of_photographs_are_clip_s(clip_folder: Path) -> None:
    space = load_features("photo", {"features": {"model": str(clip_folder), "batch": "2"}})
    images = torch.rand(3, 3, 40, 40)
    from tasks.clip import cropped

    clip = with_processor(str(clip_folder), str(clip_folder), {}, cropped)
    assert torch.allclose(space.features(images), clip.images(images), atol=1e-6)
    assert space.name == f"clip-{clip.name}" and space.cosine
    assert space.attributes(images, [Prompt("a cup")] * 3) == {}


def test_scorers_with_the_same_clip_share_it(clip_folder: Path) -> None:
    """GenEval's judge of colours and the diversity have CLIP ViT-L/14, 1.7 GB, by default."""
    space, judge = PhotoFeatures({"model": str(clip_folder)}), ClipColourJudge(str(clip_folder), ("red", "blue"))
    assert space.clip.model is judge.clip.model
    assert PhotoFeatures({"model": str(clip_folder), "precision": "bfloat16"}).clip.model is not judge.clip.model


def test_without_weights_the_setting_is_named(tmp_path: Path) -> None:
    space = load_features("photo", {"features": {"model": str(tmp_path)}})
    with pytest.raises(MissingError, match=r"diversity of photographs cannot be measured: .*scorers.features.model to"):
        _ = space.name


def test_settings_of_feature_spaces_are_checked() -> None:
    def asked(*settings: str, world: str = "photo"):
        return view_settings(list(settings), ("ocr",), ("scorers", "compute"), world).scorers

    assert load_features("photo", asked("scorers.features.model=none")) is None
    assert load_features("micro", asked("scorers.features.model=none", world="micro")) is None
    assert load_features("underwater", {}) is None
    with pytest.raises(UsageError, match=r"unknown key in scorers.features 'modle'.*model"):
        asked("scorers.features.modle=x")
    with pytest.raises(UsageError, match=r"scorers.features.model does nothing in the world 'micro'"):
        asked("scorers.features.model=x", world="micro")
    with pytest.raises(UsageError, match=r"unknown task in scorers 'feature'.*features"):
        asked("scorers.feature.model=x")
    with pytest.raises(UsageError, match=r"features.model=none leaves diversity out: leave out batch too"):
        asked("scorers.features.model=none", "scorers.features.batch=2")
    plain = resolve("merge", ["ocr"])
    away = resolve("merge", ["ocr"], overrides=["scorers.features.model=none"])
    assert away.digest("x") != plain.digest("x")
    assert "features" not in plain.scorers


def test_scoring_alone_measures_no_diversity() -> None:
    with pytest.raises(UsageError, match=r"scorers.features does nothing here: only evaluations that draw images"):
        view_settings(["scorers.features.model=none"], ("ocr",), ("scorers",), "photo")


def test_teachers_are_measured_as_their_student_is() -> None:
    spec = resolve("opd_analytic", ["ocr"], teachers="train", overrides=["scorers.features.model=none"])
    assert teacher_spec(spec, "ocr").scorers == {"features": {"model": "none"}}
