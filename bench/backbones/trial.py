"""A pass through a model that never runs: PyTorch carries it out on tensors that have a shape and no content.

What it would compute, keep for a backward pass and need at most is counted on the way. Nothing is assumed of the model:
which layers need a gradient follows from where the adapters are, what is kept from what autograd saves, what is
recomputed from gradient checkpointing itself. The tensors are of the CPU's kind, which every build of torch has; where
CUDA's autocast keeps other tensors than the CPU's, it is followed (`in_float32`).
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from bench.backbones.adapters import Adapters, Shape

if TYPE_CHECKING:
    from diffusers.models import SD3Transformer2DModel

aten = torch.ops.aten
ADAPTER = "student"


@dataclass(frozen=True)
class Pass:
    """One pass of a batch through the transformer."""

    forward: float
    """Floating-point operations of the forward pass."""
    backward: float
    """Of the backward pass; with gradient checkpointing what it computes again is in it. 0 without gradients."""
    kept: int
    """Bytes that lie in memory when the forward pass is done: what the backward pass needs."""
    peak: int
    """Bytes that lie in memory at the worst moment, the weights not counted."""


class Count(TorchDispatchMode):
    """Floating-point operations by PyTorch's own table, and bytes of every storage from its making to its end."""

    def __init__(self, model: nn.Module) -> None:
        """The model's own tensors are not counted."""
        super().__init__()
        self.flops: float = 0
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if counted := COUNTED.get(func._overloadpacket):
            self.flops += counted(*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return made

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, known: int, size: int) -> None:
        self._known.discard(known)
        self.live -= size


def attention(query, key, value, *_, **__) -> int:
    """Two products."""
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def attention_backward(grad_out, *inputs, **__) -> int:
    """Four products: what a fused kernel computes again to save memory is no progress, and counts as time instead."""
    return 2 * attention(*inputs)


COUNTED = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}


def training_pass(
    config: dict, latents: int, side: int, text_tokens: int, adapter: Shape, precision: str, checkpointed: bool,
    cuda: bool = True,
) -> Pass:  # fmt: skip
    """Forward and backward pass of `latents` latents of `side` x `side` to an adapter, under autocast at `precision`.

    `config` is SD3Transformer2DModel's. `cuda`: what CUDA's autocast would keep. Raises ValueError as `adapted`.
    """
    dtype, fake = getattr(torch, precision), FakeTensorMode()
    model = transformer(config, dtype)
    adapted(model, adapter)
    filled(model, fake, cuda)
    if checkpointed:
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        model.enable_gradient_checkpointing(again)
    with fake, Count(model) as count:
        v = predicted(model, inputs(model.config, latents, side, text_tokens, dtype), dtype)
        forward, kept = count.flops, count.live
        v.sum().backward()
        whole = count.flops
    return Pass(forward, whole - forward, kept, count.peak)


def sampling_pass(config: dict, latents: int, side: int, text_tokens: int, precision: str, cuda: bool = True) -> Pass:
    """As `training_pass`, without adapter and gradients."""
    dtype, fake = getattr(torch, precision), FakeTensorMode()
    model = filled(transformer(config, dtype), fake, cuda)
    with torch.no_grad(), fake, Count(model) as count:
        v = predicted(model, inputs(model.config, latents, side, text_tokens, dtype), dtype)
        kept = count.live
    del v
    return Pass(count.flops, 0, kept, count.peak)


def decoding_pass(config: dict, pictures: int, side: int, tiled: bool = False) -> Pass:
    """The decoder of an AutoencoderKL of this configuration, at float32, on latents of `side` x `side`, whole or in
    diffusers' own overlapping tiles."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        model = AutoencoderKL.from_config(config).requires_grad_(False).eval()
    if tiled:
        model.enable_tiling()
        model.blend_v = model.blend_h = lambda _, tile, __: tile  # in place, row by row: no products, but many calls
    fake = FakeTensorMode()
    filled(model, fake)
    with torch.no_grad(), fake, Count(model) as count:
        made = model.decode(torch.empty(pictures, model.config.latent_channels, side, side), return_dict=False)[0]
        kept = count.live
    del made
    return Pass(count.flops, 0, kept, count.peak)


def transformer(config: dict, dtype: torch.dtype = torch.float32) -> "SD3Transformer2DModel":
    """The transformer without content, frozen, at a precision."""
    from diffusers.models import SD3Transformer2DModel

    with torch.device("meta"):
        model = SD3Transformer2DModel.from_config(config)
    for parameter in model.parameters():  # .to() warns of modules to be kept in float32, of which there are none
        parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False).eval()


def adapted(model: nn.Module, shape: Shape) -> list[nn.Parameter]:
    """Give the transformer an adapter that is trained, and make it current; its parameters. Raises ValueError, as peft
    does, for targets that the model does not have."""
    adapters = Adapters(model)
    adapters.add(ADAPTER, shape, trainable=True)
    adapters.use(ADAPTER)
    return adapters.parameters(ADAPTER)


def filled(model: nn.Module, fake: FakeTensorMode, cuda: bool = False) -> nn.Module:
    """Replace a model's tensors on the meta device by those of `fake`, which know a device."""
    cpu = torch.device("cpu")
    for module in model.modules():
        if cuda and isinstance(module, nn.LayerNorm):
            own = partial(in_float32, module.forward)
            module.forward = own  # type: ignore[method-assign]  # an instance's own goes before its class's
        for name, found in module._parameters.items():
            if found is not None:
                made = FakeTensor(fake, found.data, cpu)
                module._parameters[name] = nn.Parameter(made, requires_grad=found.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = FakeTensor(fake, buffer, cpu)
    return model


def in_float32(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer norm as CUDA's autocast has it: in float32, whatever comes."""
    with torch.autocast("cpu", enabled=False):
        return norm(x.float())


def inputs(config, latents: int, side: int, text_tokens: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the transformer is called with."""
    return {
        "hidden_states": torch.empty(latents, config.in_channels, side, side, dtype=dtype),
        "encoder_hidden_states": torch.empty(latents, text_tokens, config.joint_attention_dim, dtype=dtype),
        "pooled_projections": torch.empty(latents, config.pooled_projection_dim, dtype=dtype),
        "timestep": torch.empty(latents),
    }


def predicted(model: nn.Module, given: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The velocity, in float32, as FlowBackbone computes it."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return model(**given, return_dict=False)[0].float()
