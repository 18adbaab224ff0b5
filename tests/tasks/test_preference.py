"""Aesthetic, CLIPScore, HPSv2.1 and DrawBench against direct computations from the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bench.api.task import Prompt
from bench.config.resolve import describe
from bench.errors import MissingError, UsageError
from bench.sampler.levels import FlowLevels
from bench.sampler.rollout import euler
from bench.training.evaluate import evaluate
from tasks.preference.drawbench import DrawBench
from tasks.preference.open_clip_weights import convert
from tasks.preference.task import Aesthetic, ClipScore, Hps

TEXTS = ["a long cat", "dog"]
PROMPTS = [Prompt(text) for text in TEXTS]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def head_file(tmp_path: Path) -> Path:
    """A head of the predictor's shape, narrower, for the tiny CLIP's 16 dimensions."""
    torch.manual_seed(0)
    widths, places = (16, 12, 8, 6, 4, 1), (0, 2, 4, 6, 7)
    layers = {place: nn.Linear(a, b) for place, a, b in zip(places, widths, widths[1:])}
    path = tmp_path / "head.pth"
    torch.save({f"layers.{p}.{k}": v for p, layer in layers.items() for k, v in layer.state_dict().items()}, path)
    return path


def embeddings(folder: Path, images: Tensor) -> tuple[Tensor, Tensor, float]:
    """Unit embeddings of pictures (CLIP's own processor) and texts, and the logit scale."""
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    levels = [(image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for image in images]
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=levels, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, **pixels)
    return out.image_embeds, out.text_embeds, float(model.logit_scale.detach().exp())


def test_aesthetic_is_five_linear_layers_on_the_embedding(clip_folder, head_file, images) -> None:
    task = Aesthetic("photo", {"model": str(clip_folder), "head": str(head_file)})
    scores = task.score(images, PROMPTS)
    rating = embeddings(clip_folder, images)[0]
    state = torch.load(head_file, weights_only=True)
    for place in (0, 2, 4, 6, 7):
        rating = rating @ state[f"layers.{place}.weight"].T + state[f"layers.{place}.bias"]
    np.testing.assert_allclose(scores.metrics["aesthetic"], rating.squeeze(1).numpy(), rtol=1e-4)
    assert task.scorer_name.startswith("aesthetic-1+aesthetic-")
    with pytest.raises(MissingError, match="improved-aesthetic-predictor"):
        Aesthetic("photo").score(images, PROMPTS)
    head_file.write_bytes(b"no weights")
    with pytest.raises(UsageError, match="is not a valid aesthetic head"):
        Aesthetic("photo", {"model": str(clip_folder), "head": str(head_file)}).score(images, PROMPTS)


@pytest.mark.parametrize(
    ("kind", "sources", "close"),
    # CLIP's own processor passes through 256 levels of a pixel, which makes the difference quotient coarse.
    [(ClipScore, {"convention": "30"}, 0.01), (ClipScore, {"convention": "cosine"}, 0.1), (Aesthetic, {}, 0.1), (Hps, {}, 0.1)],
)
def test_rewards_have_the_gradient_of_the_score(clip_folder, head_file, images, kind, sources, close: float) -> None:
    folder = str(clip_folder)
    own = {"head": str(head_file)} if kind is Aesthetic else {"processor": folder} if kind is Hps else {}
    task = kind("photo", {"model": folder} | own | sources)
    images = (0.2 + 0.6 * images).requires_grad_()
    scores = task.score(images.detach(), PROMPTS)
    rewards = task.differentiable_reward(images, PROMPTS)
    assert task.differentiable
    raw = scores.metrics[task.judge.metric] / task.judge.bounds[1]
    np.testing.assert_allclose(rewards.detach().numpy(), raw, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(rewards.sum(), images)
    assert gradient.shape == images.shape and (gradient.flatten(1).norm(dim=1) > 0).all()
    direction = close / 2 * gradient / gradient.abs().max()
    up, down = (task.judge(images.detach() + sign * direction, TEXTS).sum() for sign in (1, -1))
    slope = float((gradient * direction).sum())
    assert (up - down) / 2 / task.judge.bounds[1] == pytest.approx(slope, rel=close)


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (40, 33), (33, 47), (512, 768), (31, 90), (48, 32)])
def test_clipscore_looks_at_the_central_square(size: tuple[int, int]) -> None:
    """As torchvision: Resize of the short edge (the long one rounded down), then CenterCrop (its corner rounded)."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    from tasks.clip import cropped

    side, (height, width) = 32, size
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    short, long = min(size), max(size)
    target = [side if edge == short else int(side * long / short) for edge in (height, width)]
    resized = torch.nn.functional.interpolate(images, target, mode="bilinear", antialias=True)
    top, left = round((target[0] - side) / 2.0), round((target[1] - side) / 2.0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    expected = (resized[:, :, top : top + side, left : left + side] - mean) / std
    torch.testing.assert_close(cropped(images, side), expected, rtol=1e-5, atol=1e-5)


def test_a_convention_over_30_is_not_cut_off_at_a_logit_of_30(clip_folder) -> None:
    for convention, ceiling in (("30", 100 / 30), ("100", 1.0), ("cosine", 1.0)):
        judge = ClipScore("photo", {"model": str(clip_folder), "convention": convention}).judge
        assert judge.bounds == pytest.approx((0, ceiling))


def test_clipscore_says_its_convention(clip_folder, images) -> None:
    pictures, texts, scale = embeddings(clip_folder, images)
    cosine = (pictures * texts).sum(-1).numpy()
    metrics = {}
    for convention in ("30", "100", "cosine"):
        task = ClipScore("photo", {"model": str(clip_folder), "convention": convention})
        assert task.headline == f"clipscore-{convention}"
        assert task.headline in task.scorer_name
        metrics |= task.score(images, PROMPTS).metrics
    np.testing.assert_allclose(metrics["clipscore-cosine"], cosine, rtol=1e-4)
    np.testing.assert_allclose(metrics["clipscore-30"] * 30, metrics["clipscore-100"] * 100, rtol=1e-5)
    assert abs(metrics["clipscore-100"] * 100 / scale - cosine).max() > 1e-5  # bilinear is not bicubic
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        ClipScore("photo", {"convention": "cosin"}).score(images, PROMPTS)


def test_what_a_judge_makes_of_pictures_is_in_every_name_that_it_is_in(clip_folder) -> None:
    sources = {"judges": "clipscore", "clipscore_model": str(clip_folder), "clipscore_convention": "30"}
    judge = ClipScore("photo", {"model": str(clip_folder), "convention": "30"})
    assert judge.scorer_name.startswith("clipscore-2+clipscore-30-v2-clip-")
    assert DrawBench("photo", sources).scorer_name == f"drawbench-2+{judge.judge.name}"


def test_half_precision_is_another_scorer(clip_folder, images) -> None:
    whole, half = (
        ClipScore("photo", {"model": str(clip_folder), "precision": precision}) for precision in ("float32", "bfloat16")
    )
    assert half.scorer_name == f"{whole.scorer_name}-bfloat16"
    a, b = (task.score(images, PROMPTS).metrics["clipscore-100"] for task in (whole, half))
    np.testing.assert_allclose(a, b, atol=2e-2)
    assert (a != b).any()
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        ClipScore("photo", {"model": str(clip_folder), "precision": "bf16oat"}).score(images, PROMPTS)


def open_clip_state(words: int = 20) -> dict[str, Tensor]:
    """Random weights in open_clip's layout: ViT-H/14's head widths, two heads, two blocks."""
    generator = torch.Generator().manual_seed(0)
    rand = lambda *shape: 0.2 * torch.randn(*shape, generator=generator)

    def blocks(prefix: str, width: int) -> dict[str, Tensor]:
        found = {}
        for i in range(2):
            for name, shape in {
                "ln_1": (width,), "ln_2": (width,), "attn.in_proj": (3 * width, width), "attn.out_proj": (width, width),
                "mlp.c_fc": (2 * width, width), "mlp.c_proj": (width, 2 * width),
            }.items():  # fmt: skip
                joint = "_" if name == "attn.in_proj" else "."
                found[f"{prefix}resblocks.{i}.{name}{joint}weight"] = rand(*shape)
                found[f"{prefix}resblocks.{i}.{name}{joint}bias"] = rand(shape[0])
        return found

    state = blocks("visual.transformer.", 160) | blocks("transformer.", 128)
    for name, width in {"visual.ln_pre": 160, "visual.ln_post": 160, "ln_final": 128}.items():
        state |= {f"{name}.weight": rand(width), f"{name}.bias": rand(width)}
    return state | {
        "visual.class_embedding": rand(160), "visual.positional_embedding": rand(17, 160),
        "visual.conv1.weight": rand(160, 3, 8, 8), "visual.proj": rand(160, 24),
        "token_embedding.weight": rand(words, 128), "positional_embedding": rand(9, 128),
        "text_projection": rand(128, 24), "logit_scale": torch.tensor(4.6),
    }  # fmt: skip


def open_clip_forward(state: dict[str, Tensor], pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """open_clip's CLIP computed from its own tensors with PyTorch's attention."""

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def tower(x: Tensor, prefix: str, mask: Tensor | None) -> Tensor:
        for i in range(2):
            name = f"{prefix}resblocks.{i}"
            attention = nn.MultiheadAttention(x.shape[-1], 2, batch_first=True)
            attention.load_state_dict(
                {
                    "in_proj_weight": state[f"{name}.attn.in_proj_weight"],
                    "in_proj_bias": state[f"{name}.attn.in_proj_bias"],
                    "out_proj.weight": state[f"{name}.attn.out_proj.weight"],
                    "out_proj.bias": state[f"{name}.attn.out_proj.bias"],
                }
            )
            inner = norm(x, f"{name}.ln_1")
            x = x + attention(inner, inner, inner, need_weights=False, attn_mask=mask)[0]
            hidden = norm(x, f"{name}.ln_2") @ state[f"{name}.mlp.c_fc.weight"].T + state[f"{name}.mlp.c_fc.bias"]
            hidden = nn.functional.gelu(hidden) @ state[f"{name}.mlp.c_proj.weight"].T
            x = x + hidden + state[f"{name}.mlp.c_proj.bias"]
        return x

    patches = nn.functional.conv2d(pixels, state["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    seen = norm(torch.cat([first, patches], 1) + state["visual.positional_embedding"], "visual.ln_pre")
    seen = norm(tower(seen, "visual.transformer.", None)[:, 0], "visual.ln_post") @ state["visual.proj"]
    length = tokens.shape[1]
    read = state["token_embedding.weight"][tokens] + state["positional_embedding"][:length]
    mask = torch.full((length, length), float("-inf")).triu(1)
    read = norm(tower(read, "transformer.", mask), "ln_final")
    return seen, read[torch.arange(len(tokens)), tokens.argmax(1)] @ state["text_projection"]


def test_converted_open_clip_weights_compute_the_same(tmp_path: Path) -> None:
    from transformers import CLIPModel

    state = open_clip_state()
    torch.save({"state_dict": state}, tmp_path / "hps.pt")
    convert(tmp_path / "hps.pt", tmp_path / "hps")
    model = CLIPModel.from_pretrained(tmp_path / "hps").eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[18, 3, 4, 19, 0, 0], [18, 5, 6, 7, 8, 19]])
    with torch.no_grad():
        wanted = open_clip_forward(state, pixels, tokens)
        found = [
            model.get_image_features(pixel_values=pixels).pooler_output,
            model.get_text_features(input_ids=tokens).pooler_output,
        ]
    for mine, theirs in zip(found, wanted):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert float(model.logit_scale.detach()) == pytest.approx(4.6)
    torch.save(state | {"attn_mask": torch.full((9, 9), float("-inf")).triu(1)}, tmp_path / "masked.pt")
    convert(tmp_path / "masked.pt", tmp_path / "masked")  # a constant that some files hold
    torch.save(state | {"visual.proj": torch.full((160, 24), torch.nan)}, tmp_path / "broken.pt")
    with pytest.raises(UsageError, match=r"not finite in the tensor visual\.proj"):
        convert(tmp_path / "broken.pt", tmp_path / "out")
    for broken in ({"state_dict": {"x": torch.zeros(1)}}, {k: v for k, v in state.items() if k != "visual.proj"}):
        torch.save(broken, tmp_path / "broken.pt")
        with pytest.raises(UsageError, match="is not a valid open_clip ViT-H/14 checkpoint"):
            convert(tmp_path / "broken.pt", tmp_path / "out")


def test_hps_is_the_plain_cosine(clip_folder, images) -> None:
    task = Hps("photo", {"model": str(clip_folder), "processor": str(clip_folder)})
    pictures, texts, _ = embeddings(clip_folder, images)
    wanted = (normalize(pictures, dim=-1) * normalize(texts, dim=-1)).sum(-1)
    np.testing.assert_allclose(task.score(images, PROMPTS).metrics["hpsv2.1"], wanted.numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(MissingError, match="open_clip_weights"):
        Hps("photo").score(images, PROMPTS)


def test_drawbench_is_measured_by_every_named_judge(sd3_folder, clip_folder, head_file, tmp_path: Path) -> None:
    prompts = tmp_path / "drawbench.txt"
    prompts.write_text("a red cube\na red cube\na horse on the moon\n")
    task = DrawBench("photo", {
        "prompts": str(prompts), "judges": "aesthetic, hpsv2", "aesthetic_model": str(clip_folder),
        "aesthetic_head": str(head_file), "hpsv2_model": str(clip_folder), "hpsv2_processor": str(clip_folder),
    })  # fmt: skip
    backbone = describe(str(sd3_folder)).load("cpu")
    result = evaluate(backbone, task, None, euler(FlowLevels(3.0), 1), 1.0)
    assert set(result.rows) == {"reward", "aesthetic", "hpsv2.1"}
    assert len(result.strata) == 3
    assert result.rows["aesthetic"][0] != result.rows["aesthetic"][1]  # two pictures of one prompt
    with pytest.raises(UsageError, match="test prompts only"):
        task.prompts("train")
    with pytest.raises(UsageError, match="did you mean 'pickscore'"):
        DrawBench("photo", {"judges": "pikscore"})
    with pytest.raises(UsageError, match="world for task drawbench"):
        DrawBench("micro")


def test_batches_change_nothing_and_places_are_checked(clip_folder, images) -> None:
    one, many = (ClipScore("photo", {"model": str(clip_folder), "batch": size}) for size in ("1", "64"))
    a, b = (task.score(images, PROMPTS).metrics["clipscore-100"] for task in (one, many))
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert one.scorer_name == many.scorer_name
    for key, value, kind, said in (
        ("device", "gpu", UsageError, "is not one of cpu, cuda"),
        ("device", "cuda", MissingError, "torch sees no GPU"),
        ("batch", "0", UsageError, "number of images"),
        ("batch", "many", UsageError, "number of images"),
    ):
        with pytest.raises(kind, match=said):
            ClipScore("photo", {"model": str(clip_folder), key: value}).score(images, PROMPTS)
