"""Predicted size and cost of a transformer against what PyTorch counts, and what --dry-run says of it."""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from bench.backbones.adapters import Adapters, Shape
from bench.backbones.half_precision import prepare
from bench.backbones.micro.files import WEIGHTS
from bench.backbones.network import Network
from bench.backbones.sd3 import SD3, descriptor
from bench.backbones.sd3.published import DEFAULT, MEDIUM, VAE
from bench.backbones.size import Size
from bench.backbones.trial import Count, training_pass
from bench.cli.dryrun import explain
from bench.config.compute import Compute
from bench.config.resolve import resolve
from bench.errors import UsageError
from tests.sd3_shapes import sd3_size, size

TINY = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 24, "caption_projection_dim": 32, "pooled_projection_dim": 40,
    "pos_embed_max_size": 8, "qk_norm": "rms_norm", "dual_attention_layers": [0],
}  # fmt: skip


MICRO = json.loads((WEIGHTS / "base" / "transformer" / "config.json").read_text(encoding="utf-8"))
WIDE = MEDIUM | {"num_layers": 3, "dual_attention_layers": [0], "pos_embed_max_size": 64}
"""SD3.5-Medium at full width: a block with two attentions, one with one, and the last, which ends the text's path."""
LATENTS = {"micro": (MICRO, 4, 10), "tiny": (TINY, 8, 5), "wide": (WIDE, 16, 32)}
"""name -> configuration, latent pixels a side, text tokens."""


def real(config: dict, shape: Shape | None, precision: str = "float32", checkpointed: bool = False):
    """The transformer in memory (all zeros: counts do not depend on values) with the adapter that is trained."""
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        model = SD3Transformer2DModel.from_config(config)
    for module in model.modules():
        for name, found in module._parameters.items():
            if found is not None:
                zeros = torch.zeros(found.shape, dtype=getattr(torch, precision))
                module._parameters[name] = torch.nn.Parameter(zeros, requires_grad=False)
        for name, found in module._buffers.items():
            module._buffers[name] = torch.zeros(found.shape, dtype=found.dtype)
    if precision != "float32":
        prepare(model)
    if checkpointed:
        model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
    if shape:
        adapters = Adapters(model.eval(), SD3.targets)
        adapters.add("a", shape, trainable=True)
        adapters.use("a")
    return model


def forward(model, batch: int, side: int, text: int) -> torch.Tensor:
    """A velocity of noise, under autocast at the precision of the weights."""
    c, dtype = model.config, model.pos_embed.proj.weight.dtype
    given = {
        "hidden_states": torch.randn(batch, c.in_channels, side, side, dtype=dtype),
        "encoder_hidden_states": torch.randn(batch, text, c.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.randn(batch, c.pooled_projection_dim, dtype=dtype),
        "timestep": torch.full((batch,), 500.0),
    }
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return model(**given, return_dict=False)[0].float()


TARGET_SETS = {
    "published": SD3.targets,
    "feed-forward": ("ff.net.0.proj", "ff.net.2"),
    "the last block": ("transformer_blocks.2.attn.to_out.0",),
    "the output": ("proj_out",),
}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    ("name", "targets"), [("micro", "published"), ("wide", "published"), *(("tiny", each) for each in TARGET_SETS)]
)
def test_operations_are_what_pytorch_counts(name: str, targets: str, checkpointed: bool) -> None:
    """Forward and backward, whatever carries adapters; layers before the first adapter need no gradient."""
    (config, side, text), batch = LATENTS[name], 2
    shape = Shape(4, 8.0, TARGET_SETS[targets])
    model = real(config, shape, checkpointed=checkpointed)
    # the counter does not know the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counted:
            v = forward(model, batch, side, text)
        with FlopCounterMode(display=False) as backward:
            v.sum().backward()
    size = sd3_size(config, side, text, {})
    found = size.training(batch, shape, Compute(gradient_checkpointing=checkpointed))
    assert found.forward == pytest.approx(counted.get_total_flops(), rel=1e-3)
    assert found.backward == pytest.approx(backward.get_total_flops(), rel=0.02)
    with FlopCounterMode(display=False) as base, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        forward(real(config, None), batch, side, text)
    assert size.flops * batch == pytest.approx(base.get_total_flops(), rel=1e-3)


@dataclass(frozen=True)
class TinyFlux(Network):
    """Another family: packed latents, positions beside the prompt, blocks of two kinds."""

    latent_side: int
    targets = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    latent_numbers, prompt_numbers = 4 * 8 * 8, 5 * 24 + 12

    def build(self) -> torch.nn.Module:
        with torch.device("meta"):
            return self.real()

    def real(self) -> torch.nn.Module:
        return FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=24, pooled_projection_dim=12, axes_dims_rope=(4, 4, 8),
        )  # fmt: skip

    def inputs(self, model, latents: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        tokens = (self.latent_side // 2) ** 2
        return {
            "hidden_states": torch.zeros(latents, tokens, 16, dtype=dtype), "img_ids": torch.zeros(tokens, 3),
            "encoder_hidden_states": torch.zeros(latents, 5, 24, dtype=dtype), "txt_ids": torch.zeros(5, 3),
            "pooled_projections": torch.zeros(latents, 12, dtype=dtype), "timestep": torch.zeros(latents),
        }  # fmt: skip


def test_another_family_is_counted_by_its_network_alone() -> None:
    network = TinyFlux(8)
    model = network.real().requires_grad_(False)
    adapters = Adapters(model, network.targets)
    adapters.add("a", Shape(4, 8.0), trainable=True)
    adapters.use("a")
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counted:
            v = model(**network.inputs(model, 2, torch.float32), return_dict=False)[0]
        with FlopCounterMode(display=False) as backward:
            v.sum().backward()
    size = Size(network, {})
    found = size.training(2, Shape(4, 4.0), Compute())
    assert found.forward == pytest.approx(counted.get_total_flops(), rel=1e-3)
    assert found.backward == pytest.approx(backward.get_total_flops(), rel=0.02)
    assert size.student(Shape(4, 4.0)) == sum(p.numel() for p in adapters.parameters("a"))
    assert size.state_bytes(Compute(precision="bfloat16")) == (4 * 4 * 8 * 8, 2 * (5 * 24 + 12))
    assert size.decoding(1, Compute()) is None
    with pytest.raises(UsageError, match=r"unknown layer in lora\.targets 'attn\.to_qq'; did you mean 'attn\.to_q'"):
        size.student(Shape(4, 4.0, ("attn.to_qq",)))


@pytest.mark.parametrize("side", [8, 9, 16, 20])
@pytest.mark.parametrize("decode", ["whole", "tiled"])
def test_operations_of_decoding_are_what_pytorch_counts(decode: str, side: int) -> None:
    """Tiles overlap, and those at the edge are partial ones; up to a tile a side there is but one."""
    config = {
        "block_out_channels": [8, 8, 8], "norm_num_groups": 1, "latent_channels": 4, "sample_size": 32,
        "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
        "use_quant_conv": False, "use_post_quant_conv": False,
    }  # fmt: skip
    vae = AutoencoderKL(**config).eval()
    if decode == "tiled":
        vae.enable_tiling()
    # the counter does not know the CPU's fused attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        vae.decode(torch.randn(2, 4, side, side))
    found = sd3_size({}, side, 1, {}, config).decoding(2, Compute(decode=decode))
    assert found.forward == pytest.approx(counted.get_total_flops(), rel=1e-3)


def test_a_backward_pass_to_the_published_adapter_is_no_two_forwards() -> None:
    """1.12 forward passes of SD3.5-Medium; gradient checkpointing adds about one."""
    medium = size(DEFAULT, Compute(resolution=512))
    for checkpointed, wanted in ((False, 1.1225), (True, 2.1212)):
        found = medium.training(1, Shape(32, 64.0), Compute(precision="bfloat16", gradient_checkpointing=checkpointed))
        assert found.forward == pytest.approx(2.247e12, rel=1e-3)
        assert found.backward / found.forward == pytest.approx(wanted, rel=1e-3)


def kept_by_autograd(model, run) -> tuple[torch.Tensor, int]:
    """What `run` returns, and the bytes that autograd saved meanwhile, each storage once, the model's own left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}  # kept alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    return out, sum(t.untyped_storage().nbytes() for address, t in saved.items() if address not in own)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dual", [[0, 1, 2], []], ids=["dual", "single"])
def test_activations_are_what_autograd_keeps(dual: list[int], precision: str, checkpointed: bool) -> None:
    config, side, text, batch = WIDE | {"dual_attention_layers": dual}, 16, 32, 2
    shape = Shape(32, 64.0)
    model = real(config, shape, precision, checkpointed)
    v, kept = kept_by_autograd(model, lambda: forward(model, batch, side, text))
    del v
    for parameter in model.parameters():  # held throughout, and so no part of what a pass needs
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with Count(model) as count:
        forward(model, batch, side, text).sum().backward()
    network = sd3_size(config, side, text, {}).network
    on_cpu = training_pass(network, batch, shape, precision, checkpointed, cuda=False)
    assert on_cpu.kept == pytest.approx(kept, rel=0.05)
    assert on_cpu.peak == pytest.approx(count.peak, rel=0.05)
    if precision != "float32":
        assert training_pass(network, batch, shape, "float16", checkpointed, cuda=False) == on_cpu


def test_a_folder_is_measured_by_its_headers(sd3_folder: Path) -> None:
    backbone = descriptor(str(sd3_folder)).load("cpu")
    backbone.encode(["a"])
    found = size(str(sd3_folder), Compute())
    assert found.parameters == sum(p.numel() for p in backbone.transformer.parameters())
    assert found.frozen["vae"] == sum(p.numel() for p in backbone.vae.parameters())
    assert found.frozen["text_encoder"] == sum(p.numel() for p in backbone._text.text_encoder.parameters())
    assert "text_encoder_3" not in found.frozen
    backbone.adapters.add("a", Shape(4, 8.0))
    assert found.student(Shape(4, 1.0)) == sum(p.numel() for p in backbone.adapters.parameters("a"))


def test_sd35_medium_is_as_published() -> None:
    """2.24 billion trained parameters (2.47 with the fixed position table); 1,024 image tokens at 512 pixels."""
    found = size(DEFAULT, Compute(resolution=512))
    assert found.parameters == 2_243_171_520
    assert (found.latent_side // MEDIUM["patch_size"]) ** 2 == 1024
    assert found.student(Shape(32, 1.0)) == 18_776_064
    assert size(DEFAULT, Compute()).latent_side == 2 * found.latent_side
    with pytest.raises(UsageError, match=r"compute\.resolution must be a multiple of 16, not 500"):
        size(DEFAULT, Compute(resolution=500))


@pytest.mark.parametrize(
    ("changes", "least", "resolution", "precision"),
    [({}, 0, 512, "bfloat16"), ({"sample_size": 64}, 0, None, "bfloat16"), ({}, 10**9, None, "float32")],
)
def test_a_published_size_is_one_of_files(
    sd3_folder: Path, tmp_path: Path, monkeypatch, changes, least: int, resolution, precision
) -> None:
    """Whatever it draws; its resolution is capped where that is larger."""
    monkeypatch.setattr("bench.backbones.pipeline.describe.LARGE_BYTES", least)
    folder = Path(shutil.copytree(sd3_folder, tmp_path / "p"))
    for part, told in (("transformer", MEDIUM | changes), ("vae", VAE)):
        (folder / part / "config.json").write_text(json.dumps(told))
    spec = resolve("opd_analytic", ["ocr"], backbone=str(folder), teachers="train")
    assert (spec.compute.resolution, spec.compute.precision) == (resolution, precision)
    assert bool(descriptor(str(folder)).recipes) == (precision == "bfloat16")


def test_a_dry_run_predicts_hours_and_memory(sd3_folder: Path, capsys) -> None:
    overrides = ["params.chunk=4", "sampler.guidance=4.5"]
    teachers = {"teachers": "train", "backbone": str(sd3_folder), "overrides": overrides}
    explain(resolve("opd_analytic", ["ocr"], **teachers))
    said = capsys.readouterr().out
    assert "TFLOP per forward pass of one latent" in said
    assert "activations of 8 latents (estimate)" in said
    assert "3 adapters" in said
    explain(resolve("opd_analytic", ["ocr"]))
    assert "predicted memory" not in capsys.readouterr().out
