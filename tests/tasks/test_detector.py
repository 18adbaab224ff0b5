"""The COCO detector's surroundings: mmdet's resizing, padding, scoring and boxes; colours from cut-outs."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.api.scores import score_each
from bench.api.task import Prompt
from bench.errors import MissingError, UsageError
from tasks.geneval.colours import THIN, ClipColourJudge, cut_out, open_clip_pixels, without_ends
from tasks.geneval.detector import Detection, Mask2FormerDetector, candidates, instances, prepare, require_coco
from tasks.geneval.photo import PhotoReader
from tasks.geneval.prompts import COCO
from tasks.geneval.task import GenEval

COLOURS = ("red", "green", "blue")


@pytest.mark.parametrize("size", [(512, 512), (300, 700), (64, 40), (1024, 768)])
def test_pictures_are_scaled_padded_and_normalised(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels, (height, width) = prepare(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    expected = (
        torch.nn.functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None].float(), (height, width), mode="bilinear"
        )[0]
        .permute(1, 2, 0)
        .numpy()
    )
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    levels = pixels[0].permute(1, 2, 0).double().numpy() * std + mean
    assert np.abs(levels[:height, :width] - expected).max() < 1.01  # OpenCV's fixed point
    assert (max(height, width) == 1333) or (min(height, width) == 800)
    assert all(side % 32 == 0 for side in pixels.shape[-2:])
    np.testing.assert_allclose(levels[height:], 128, atol=1e-4)
    np.testing.assert_allclose(levels[:, width:], 128, atol=1e-4)


def test_candidates_leave_out_no_object_and_may_take_a_query_twice() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.4, 0.1], [0.05, 0.05, 0.9]]))
    query, label, probability = candidates(logits, 0.3)
    assert query.tolist() == [0, 0]
    assert label.tolist() == [0, 1]
    assert probability.tolist() == pytest.approx([0.5, 0.4])


def test_scores_and_boxes_by_hand() -> None:
    logits = torch.full((3, 10, 12), -2.0)
    logits[0, 2:5, 3:9] = 1.0
    logits[1, 0, 0] = 4.0
    found = instances(torch.tensor([7, 8, 9]), torch.tensor([0.8, 0.31, 0.9]), logits, 0.3)
    assert [d.label for d in found] == [7, 8]  # the third's mask is empty: it scores nothing
    assert found[0].box == (3, 2, 9, 5)
    assert found[0].score == pytest.approx(0.8 / (1 + np.exp(-1.0)), rel=1e-5)
    assert found[0].mask.sum() == 18
    assert (found[1].box, found[1].score) == ((0, 0, 1, 1), pytest.approx(0.31 / (1 + np.exp(-4.0)), rel=1e-5))


def test_scores_are_compared_with_the_floor_as_float32() -> None:
    """A certain mask leaves the probability as the score: float32's 0.3 is more than Python's 0.3, and not kept."""
    at32 = torch.tensor([0.3])
    above = torch.nextafter(at32, torch.ones(1))
    assert float(at32) > 0.3
    probabilities = torch.cat([at32, above, torch.nextafter(at32, torch.zeros(1))])
    logits = torch.full((3, 40, 40), 99.0)  # a mean sigmoid of exactly 1
    found = instances(torch.tensor([1, 2, 3]), probabilities, logits, 0.3)
    assert [(d.label, d.score) for d in found] == [(2, float(above))]
    assert candidates(torch.log(torch.tensor([[float(at32), 0.6, 0.1]])), 0.3)[1].tolist() == [1]


def test_a_stronger_floor_only_leaves_out() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20, 16, 16, generator=generator)
    scores = torch.rand(20, generator=generator)
    low, high = (instances(torch.arange(20), scores, logits, floor) for floor in (0.1, 0.5))
    assert [(d.label, d.box, d.score) for d in high] == [(d.label, d.box, d.score) for d in low if d.score > 0.5]


@pytest.fixture(scope="module")
def detector(detector_folder: Path) -> Mask2FormerDetector:
    return Mask2FormerDetector(str(detector_folder), "hf-converted")


def test_detection_from_end_to_end_is_deterministic_and_in_the_picture(detector: Mask2FormerDetector) -> None:
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    first, again = detector.detect(images, 0.0), detector.detect(images, 0.0)
    assert any(first)
    for picture, same in zip(first, again):
        assert [(d.label, d.box, d.score) for d in picture] == [(d.label, d.box, d.score) for d in same]
        for d in picture:
            x1, y1, x2, y2 = d.box
            assert 0 <= x1 < x2 <= 64
            assert 0 <= y1 < y2 <= 48
            assert d.mask.shape == (48, 64)
            assert d.mask[:, : int(x1)].sum() == d.mask[int(y2) :].sum() == 0
    assert detector.name.startswith("hf-converted-")


def test_missing_models_are_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no detector at"):
        Mask2FormerDetector(str(tmp_path), "hf").detect(torch.zeros(1, 3, 8, 8), 0.3)
    found = Detection(0, (0, 0, 4, 4), 1.0, np.ones((8, 8), bool))
    with pytest.raises(MissingError, match="no CLIP model at"):
        ClipColourJudge(str(tmp_path), COLOURS).judge(torch.zeros(3, 8, 8), [found], "car")


@pytest.mark.parametrize("part", ["class_queries_logits", "masks_queries_logits"])
def test_a_picture_that_the_detector_makes_no_numbers_of_has_no_verdict(detector_folder, part: str, monkeypatch) -> None:
    mine = Mask2FormerDetector(str(detector_folder), "hf-converted")
    forward = mine.model.forward

    def dark_ones_overflow(pixel_values):
        outputs = forward(pixel_values=pixel_values)
        getattr(outputs, part)[pixel_values.mean((1, 2, 3)) < -1, 0] = torch.nan
        return outputs

    monkeypatch.setattr(mine.model, "forward", dark_ones_overflow)
    images = torch.ones(3, 3, 48, 64)
    images[1] = 0
    with pytest.raises(FloatingPointError, match="the detector gives values that are not finite"):
        mine.detect(images, 0.3)
    task = GenEval("photo")
    task.reader = PhotoReader(mine, ClipColourJudge("nowhere", COLOURS))  # no colour is asked
    record = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"}
    scores = score_each(task, images, [Prompt("a photo of a cat", "single_object", record)] * 3)
    assert np.isnan(scores.rewards).tolist() == [False, True, False]
    assert "not finite" in scores.details[1]["failure"]


def test_no_colour_is_judged_from_no_numbers(clip_folder: Path) -> None:
    judge = ClipColourJudge(str(clip_folder), COLOURS)
    found = Detection(0, (0, 0, 4, 4), 1.0, np.ones((8, 8), bool))
    assert judge.judge(torch.zeros(3, 8, 8), [found], "car")[0] in COLOURS
    with torch.no_grad():
        judge.clip.model = deepcopy(judge.clip.model)  # other scorers have the same one
        judge.clip.model.visual_projection.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="the colour judge gives values that are not finite"):
        judge.judge(torch.zeros(3, 8, 8), [found], "car")


def labels(*changed: tuple[int, str], count: int = 80) -> dict[int, str]:
    return dict(enumerate(COCO.names[:count])) | dict(changed)


def test_the_classes_are_those_of_coco_in_their_order() -> None:
    require_coco({place: f"LABEL_{place}" for place in range(80)}, "here")
    require_coco(labels(), "here")
    require_coco(labels((64, "mouse"), (65, "remote"), (66, "keyboard"), (9, "Traffic_Light")), "here")
    # Names of Pascal VOC, and a few that are in neither.
    others = {3: "motorbike", 4: "aeroplane", 57: "sofa", 58: "pottedplant", 60: "diningtable", 62: "tvmonitor", 7: "lorry"}
    require_coco(labels(*others.items()), "here")
    for wrong, said in (
        (labels(count=8), "has 8 classes"),
        (labels(count=79), "has 79 classes"),
        ({place: f"LABEL_{place}" for place in range(133)}, "has 133 classes; GenEval needs COCO's 80"),
        (labels((0, "bicycle"), (1, "person")), "calls its class 0 'bicycle', where COCO has 'person'"),
        (labels(*((79 - place, name) for place, name in enumerate(COCO.names))), "class 0 'toothbrush'"),
        ({place: f"thing {place}" for place in range(80)}, "class 0 'thing 0'"),
    ):
        with pytest.raises(UsageError, match=said):
            require_coco(wrong, "here")


def test_a_detector_of_other_classes_is_refused(detector_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(detector_folder)
    config.id2label = labels((0, "cat"), (15, "person"))
    (tmp_path / "model.safetensors").symlink_to(detector_folder / "model.safetensors")
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="calls its class 0 'cat'"):
        Mask2FormerDetector(str(tmp_path), "hf-converted").detect(torch.zeros(1, 3, 8, 8), 0.3)


def test_cut_out_shows_the_object_on_grey() -> None:
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:6] = True
    mask[2, 3] = False
    pixels = np.asarray(cut_out(torch.full((3, 8, 10), 1.0), Detection(0, (3, 2, 6, 5), 1.0, mask)))
    assert pixels.shape == (3, 3, 3)
    assert pixels[0, 0].tolist() == [153] * 3
    assert pixels[1, 1].tolist() == [255] * 3


def torchvision_like(picture: Image.Image, side: int) -> np.ndarray:
    """Resize and CenterCrop of torchvision, ToTensor and Normalize, one pixel after another: float64 [3, side, side]."""
    width, height = picture.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = side, int(side * long / short)
    size = (new_short, new_long) if width <= height else (new_long, new_short)
    levels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = round((size[1] - side) / 2.0), round((size[0] - side) / 2.0)
    pixels = np.empty((3, side, side))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    for channel in range(3):
        for row in range(side):
            line = levels[top + row, left : left + side, channel].astype(np.float64)
            pixels[channel, row] = (line / 255 - mean[channel]) / std[channel]
    return pixels


def test_cut_outs_are_brought_to_size_as_open_clip_does_it() -> None:
    """Hundreds of sizes, odd margins among them, where transformers' processor crops a pixel beside."""
    from transformers import CLIPImageProcessorPil

    rng, side = np.random.default_rng(0), 32
    theirs = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)
    sizes = [(int(w), int(h)) for w, h in rng.integers(1, 120, (300, 2))]
    sizes += [(side, side + k) for k in range(6)] + [(side + k, side) for k in range(6)] + [(1, 90), (90, 1), (1, 1)]
    beside = 0
    for width, height in sizes:
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        (found,) = open_clip_pixels([picture], side)
        assert found.shape == (3, side, side)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), torchvision_like(picture, side), atol=1e-5)
        other = theirs(images=picture, return_tensors="pt")["pixel_values"][0]
        beside += float((found - other).abs().max()) > 0.1
    assert 0.15 * len(sizes) < beside < 0.4 * len(sizes)


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (2, 900), (1201, 8), (7, 5000), (3001, 13)])
def test_the_ends_of_a_line_are_not_enlarged(size: tuple[int, int]) -> None:
    """The central square of a thin cut-out, from little more than itself: a level may be rounded otherwise."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    short = min(size)
    middle = without_ends(picture)
    assert THIN * short <= max(middle.size) < (THIN + 4) * short
    assert min(middle.size) == short
    (found,) = open_clip_pixels([picture], 32)
    whole = torchvision_like(picture, 32)
    exact = short in (1, 2, 8)  # CLIP's side is a whole number of times theirs
    np.testing.assert_allclose(found.numpy(), whole, atol=1e-5 if exact else 0.1)
    assert without_ends(Image.new("RGB", (8, 8 * THIN))).size == (8, 8 * THIN)


def test_margins_of_a_half_go_to_the_even_side() -> None:
    """int(round(x)) as torchvision writes it: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, 3.5 -> 4."""
    for extra, left in ((1, 0), (2, 1), (3, 2), (5, 2), (7, 4), (9, 4)):
        levels = np.broadcast_to(np.arange(8 + extra, dtype=np.uint8)[None, :, None], (8, 8 + extra, 3))
        (found,) = open_clip_pixels([Image.fromarray(np.ascontiguousarray(levels))], 8)
        first = float(found[0, 0, 0]) * 0.26862954 + 0.48145466
        assert round(first * 255) == left


def test_colours_are_judged_by_the_nearest_mean_text(clip_folder: Path) -> None:
    """The verdict is the argmax of a direct transcription."""
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), AutoTokenizer.from_pretrained(clip_folder)
    image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(1))
    mask = np.zeros((24, 24), bool)
    mask[4:20, 4:20] = True
    objects = [Detection(2, (4, 4, 20, 20), 0.9, mask), Detection(2, (4, 4, 12, 17), 0.8, mask)]
    judge = ClipColourJudge(str(clip_folder), COLOURS)
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        words = []
        for colour in COLOURS:
            texts = [
                f"a photo of a {colour} car",
                f"a photo of a {colour}-colored car",
                f"a photo of a {colour} object",
            ]
            embedded = [model.get_text_features(**tokenizer(t, return_tensors="pt")).pooler_output for t in texts]
            words.append(unit(unit(torch.cat(embedded), dim=-1).mean(0), dim=0))
        expected = []
        for o in objects:
            pixels = torch.tensor(torchvision_like(cut_out(image, o), 32), dtype=torch.float32)[None]
            seen = model.get_image_features(pixel_values=pixels).pooler_output
            expected.append(COLOURS[int((seen @ torch.stack(words).T).argmax())])
    assert judge.judge(image, objects, "car") == expected
    assert judge.judge(image, [], "car") == []
