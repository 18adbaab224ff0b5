"""Predicted size and cost of a transformer against what PyTorch counts, and what --dry-run says of it."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.backbones.adapters import Shape
from bench.backbones.compute import Compute
from bench.backbones.sd3 import DEFAULT, descriptor, size
from bench.backbones.size import Size
from bench.dryrun import explain
from bench.errors import UsageError
from bench.spec import resolve

TINY = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 40,
    "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": [0],
}  # fmt: skip


def test_operations_are_what_pytorch_counts() -> None:
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(**TINY)
    found = Size(TINY, latent_side=8, text_tokens=5, frozen={})
    assert found.parameters == sum(p.numel() for p in model.parameters())
    batch = 3
    # the counter does not know the CPU's fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(
            hidden_states=torch.randn(batch, 4, 8, 8), encoder_hidden_states=torch.randn(batch, 5, 24),
            pooled_projections=torch.randn(batch, 40), timestep=torch.ones(batch),
        )  # fmt: skip
    assert found.flops * batch == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_folder_is_measured_by_its_headers(sd3_folder: Path) -> None:
    backbone = descriptor(str(sd3_folder)).load("cpu")
    backbone.encode(["a"])
    found = size(str(sd3_folder), Compute())
    assert found.parameters == sum(p.numel() for p in backbone.transformer.parameters())
    assert found.frozen["vae"] == sum(p.numel() for p in backbone.vae.parameters())
    assert found.frozen["text_encoder"] == sum(p.numel() for p in backbone._text.text_encoder.parameters())
    assert "text_encoder_3" not in found.frozen
    backbone.adapters.add("a", Shape(4, 8.0))
    assert found.adapter(4, None) == sum(p.numel() for p in backbone.adapters.parameters("a"))


def test_sd35_medium_is_as_published() -> None:
    """2.24 billion trained parameters (2.47 with the fixed position table); 1,024 image tokens at 512 pixels."""
    found = size(DEFAULT, Compute(resolution=512))
    assert found.parameters == 2_243_171_520
    assert found.image_tokens == 1024
    assert found.adapter(32, None) == 18_776_064
    assert size(DEFAULT, Compute()).image_tokens == 4096
    assert size("hub:nobody/nothing", Compute()) is None
    with pytest.raises(UsageError, match=r"compute\.resolution 500 is no multiple of 16"):
        size(DEFAULT, Compute(resolution=500))


def test_a_dry_run_predicts_hours_and_memory(sd3_folder: Path, capsys) -> None:
    overrides = ["params.chunk=4", "sampler.guidance=4.5"]
    teachers = {"teachers": "train", "backbone": str(sd3_folder), "overrides": overrides}
    explain(resolve("opd_analytic", ["ocr"], **teachers))
    said = capsys.readouterr().out
    assert "TFLOP a model evaluation" in said
    assert "activations of 8 latents (estimate)" in said
    assert "3 adapters" in said
    explain(resolve("opd_analytic", ["ocr"]))
    assert "predicted memory" not in capsys.readouterr().out
