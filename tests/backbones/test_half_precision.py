"""Networks in half precision with fewer tensors: the same numbers, or as near to the exact ones."""

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.normalization import RMSNorm
from torch import Tensor

from bench.backbones.adapters import Adapters, Shape
from bench.backbones.half_precision import FusedRmsNorm, prepare
from bench.backbones.sd3 import SD3
from bench.backbones.trial import training_pass
from tests.sd3_shapes import sd3_size

TINY = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 4, "joint_attention_dim": 16, "caption_projection_dim": 32, "pooled_projection_dim": 8,
    "pos_embed_max_size": 8, "dual_attention_layers": [0],
}  # fmt: skip


def network(dtype: torch.dtype, **more: object) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    model = SD3Transformer2DModel(**TINY, **more)
    for name, parameter in model.named_parameters():
        if "norm_" in name:  # the weights of RMSNorms begin as ones
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False).eval()


def passed(model: SD3Transformer2DModel, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Velocity, gradient of an adapter, and the bytes that autograd kept."""
    adapters = Adapters(model, SD3.targets)
    adapters.add("student", Shape(4, 8.0), seed=1, trainable=True)
    with torch.no_grad():
        for parameter in adapters.parameters("student"):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) / 10)
    adapters.use("student")
    g = torch.Generator().manual_seed(3)
    given = {
        "hidden_states": torch.randn(2, 4, 8, 8, generator=g), "timestep": torch.tensor([300.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 5, 16, generator=g), "pooled_projections": torch.randn(2, 8, generator=g),
    }  # fmt: skip
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    typed = {name: value if name == "timestep" else value.to(dtype) for name, value in given.items()}
    half = torch.bfloat16
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", half, enabled=half == dtype),
    ):
        v = model(**typed, return_dict=False)[0]
    v.double().square().sum().backward()
    return v.detach(), torch.cat([p.grad.flatten() for p in adapters.parameters("student")]), sum(kept.values())


def test_one_cast_of_an_attention_s_input_has_the_bits_of_many() -> None:
    before = passed(network(torch.bfloat16), torch.bfloat16)
    model = network(torch.bfloat16)
    prepare(model)
    after = passed(model, torch.bfloat16)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_a_gpu_keeps_one_cast_instead_of_three(monkeypatch) -> None:
    """Its layer norms give float32, which every projection would cast for itself."""
    shapes = sd3_size(TINY, 8, 5, {}).network
    once = training_pass(shapes, 2, Shape(4, 8.0), "bfloat16", False).kept
    monkeypatch.setattr("bench.backbones.half_precision.prepare", lambda model: None)
    assert once < 0.97 * training_pass(shapes, 2, Shape(4, 8.0), "bfloat16", False).kept


@pytest.mark.parametrize("kind", [RMSNorm, torch.nn.RMSNorm])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fused_norm_is_at_least_as_near_to_the_exact_one(dtype: torch.dtype, trained: bool, kind: type) -> None:
    """Also with the weights of a student that has all of them, which are in float32."""
    generator = torch.Generator().manual_seed(0)
    x, weight = 3 * torch.randn(512, 64, generator=generator), torch.rand(64, generator=generator) + 0.5
    theirs = kind(64, eps=1e-6)
    theirs.weight.data = weight.to(dtype)
    ours = torch.nn.Sequential(kind(64, eps=1e-6))
    prepare(ours)
    assert type(ours[0]) is not kind
    ours[0].weight.data = weight.to(dtype).float() if trained else weight.to(dtype)
    x = x.to(dtype)
    exact = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight.to(dtype).double()
    with torch.autocast("cpu", dtype):
        one, two = (norm(x) for norm in (ours, theirs))
    assert one.dtype == dtype
    two = two.to(dtype)  # autocast runs PyTorch's norm in float32
    assert (one - exact).norm() <= (two - exact).norm()
    assert 0 < (one - exact).norm() < 1e-2 * exact.norm()


def test_a_network_with_norms_keeps_less_and_stays_as_near_to_float32() -> None:
    exact = passed(network(torch.bfloat16, qk_norm="rms_norm").float(), torch.float32)
    errors, kept = [], []
    for prepared in (False, True):
        model = network(torch.bfloat16, qk_norm="rms_norm")
        if prepared:
            prepare(model)
            assert any(isinstance(module, FusedRmsNorm) for module in model.modules())
        v, gradient, size = passed(model, torch.bfloat16)
        pairs = ((v, exact[0]), (gradient, exact[1]))
        errors.append([float((made.double() - true.double()).norm() / true.double().norm()) for made, true in pairs])
        kept.append(size)
    assert kept[1] < 0.95 * kept[0]
    assert all(ours < 1.2 * theirs < 0.1 for theirs, ours in zip(*errors)), errors
