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
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from bench.backbones.adapters import Adapters, Shape
from bench.backbones.network import Decoder, Network

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL, ModelMixin

aten = torch.ops.aten
ADAPTER = "student"


@dataclass(frozen=True)
class Pass:
    """One pass of a batch through the network."""

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
    network: Network, latents: int, adapter: Shape, precision: str, checkpointed: bool, cuda: bool = True
) -> Pass:
    """Forward and backward pass of so many latents to an adapter, under autocast at `precision`.

    `cuda`: what CUDA's autocast would keep. Raises ValueError as `adapted`.
    """
    dtype, fake = getattr(torch, precision), FakeTensorMode()
    model = built(network, dtype)
    adapted(model, network, adapter)
    filled(model, fake, cuda)
    if checkpointed:
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        cast("ModelMixin", model).enable_gradient_checkpointing(again)
    with fake, Count(model) as count:
        v = predicted(model, network.inputs(model, latents, dtype), dtype)
        forward, kept = count.flops, count.live
        v.sum().backward()
        whole = count.flops
    return Pass(forward, whole - forward, kept, count.peak)


def sampling_pass(network: Network, latents: int, precision: str, cuda: bool = True) -> Pass:
    """As `training_pass`, without adapter and gradients."""
    dtype, fake = getattr(torch, precision), FakeTensorMode()
    model = filled(built(network, dtype), fake, cuda)
    with torch.no_grad(), fake, Count(model) as count:
        v = predicted(model, network.inputs(model, latents, dtype), dtype)
        kept = count.live
    del v
    return Pass(count.flops, 0, kept, count.peak)


def decoding_pass(decoder: Decoder, pictures: int, tiled: bool = False) -> Pass:
    """Decoding so many latents at float32, whole or in the model's own overlapping tiles."""
    model, fake = decoder.build(tiled).requires_grad_(False).eval(), FakeTensorMode()
    filled(model, fake)
    with torch.no_grad(), fake, Count(model) as count:
        made = cast("AutoencoderKL", model).decode(decoder.inputs(model, pictures), return_dict=False)[0]
        kept = count.live
    del made
    return Pass(count.flops, 0, kept, count.peak)


def built(network: Network, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network without content, frozen, at a precision."""
    model = network.build()
    for parameter in model.parameters():  # .to() warns of modules to be kept in float32, of which there are none
        parameter.data = parameter.data.to(dtype)
    return model.requires_grad_(False).eval()


def adapted(model: nn.Module, network: Network, shape: Shape) -> list[nn.Parameter]:
    """Give a built network an adapter that is trained, and make it current; its parameters. Raises ValueError, as peft
    does, for targets that the model does not have."""
    adapters = Adapters(model, network.targets)
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


def predicted(model: nn.Module, given: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The velocity, in float32, as FlowBackbone computes it."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return model(**given, return_dict=False)[0].float()
