"""Simulated passes through a model: PyTorch executes them on fake tensors, which have a shape but no content.

The pass counts its operations, the memory kept for the backward pass, and the peak memory. It assumes nothing about the
model: the adapters determine which layers need gradients, autograd determines what is saved, and gradient checkpointing
determines what is recomputed. The fake tensors are on the CPU, which every build of torch supports; where CUDA's
autocast would save different tensors from the CPU's, it is imitated (`in_float32`).
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

from bench.backbones import half_precision
from bench.backbones.adapters import Adapters, Shape
from bench.backbones.full_weights import Full
from bench.backbones.network import Decoder, Network
from bench.errors import UsageError, one_line

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL, ModelMixin

aten = torch.ops.aten
ADAPTER = "student"


@dataclass(frozen=True)
class Pass:
    """Compute and memory of one pass of a batch through a model."""

    forward: float
    """Floating-point operations of the forward pass."""
    backward: float
    """Floating-point operations of the backward pass, including what checkpointing recomputes; 0 without gradients."""
    kept: int
    """Bytes in memory after the forward pass: what the backward pass needs."""
    peak: int
    """Peak memory in bytes, without the weights."""


class Count(TorchDispatchMode):
    """Counts floating-point operations with PyTorch's own table, and the bytes of all storages that are alive."""

    def __init__(self, model: nn.Module) -> None:
        """The tensors of `model` itself are not counted."""
        super().__init__()
        self.flops: float = 0
        self.live = self.peak = 0
        own = (*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None))
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run one operation, then count it and the storages of its results."""
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
        # The address must be forgotten, because a new storage may reuse it.
        self._known.discard(known)
        self.live -= size


def attention(query, key, value, *_, **__) -> int:
    """Floating-point operations of attention: two matrix products."""
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def attention_backward(grad_out, *inputs, **__) -> int:
    """Floating-point operations of attention's backward pass: four matrix products.

    What a fused kernel recomputes to save memory is not counted; it only makes the pass slower.
    """
    return 2 * attention(*inputs)


COUNTED = flop_registry | {
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}
"""FLOP formulas by operator: PyTorch's table has none for the CPU's fused attention."""


def training_pass(
    network: Network, latents: int, student: Shape | Full, precision: str, checkpointed: bool, cuda: bool = True
) -> Pass:
    """Forward and backward pass of a batch of `latents` that trains a student, under autocast at `precision`.

    `cuda` imitates what CUDA's autocast would save. Raises ValueError as `adapted`.
    """
    dtype, fake = getattr(torch, precision), FakeTensorMode()
    model = built(network, dtype)
    adapted(model, network, student)
    filled(model, fake, cuda)
    with fake:  # the gradient is held throughout, and is not part of the pass
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    if checkpointed:
        function = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        cast("ModelMixin", model).enable_gradient_checkpointing(function)
    with fake, Count(model) as count:
        v = predicted(model, network.inputs(model, latents, dtype), dtype)
        forward, kept = count.flops, count.live
        v.sum().backward()
        whole = count.flops
    return Pass(forward, whole - forward, kept, count.peak)


def sampling_pass(network: Network, latents: int, precision: str, cuda: bool = True) -> Pass:
    """Forward pass of a batch of `latents` without adapter and gradients, under autocast at `precision`."""
    dtype, fake = getattr(torch, precision), FakeTensorMode()
    model = filled(built(network, dtype), fake, cuda)
    with torch.no_grad(), fake, Count(model) as count:
        v = predicted(model, network.inputs(model, latents, dtype), dtype)
        kept = count.live
    del v  # referenced until here, so that `kept` includes the result
    return Pass(count.flops, 0, kept, count.peak)


def decoding_pass(decoder: Decoder, pictures: int, tiled: bool = False) -> Pass:
    """Decoding of a batch of `pictures` images in float32, at once or in the model's own overlapping tiles."""
    model, fake = decoder.build(tiled).requires_grad_(False).eval(), FakeTensorMode()
    filled(model, fake)
    with torch.no_grad(), fake, Count(model) as count:
        # Without a name of their own, the latents can be freed while decoding, as in a real run.
        made = cast("AutoencoderKL", model).decode(decoder.inputs(model, pictures), return_dict=False)[0]
        kept = count.live
    del made
    return Pass(count.flops, 0, kept, count.peak)


def built(network: Network, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network on the meta device, frozen, with parameters of type `dtype`."""
    model = network.build()
    # Not model.to(dtype): diffusers warns there about modules to keep in float32, which these models do not have.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if dtype != torch.float32:
        half_precision.prepare(model)
    return model.requires_grad_(False).eval()


def adapted(model: nn.Module, network: Network, shape: Shape | Full) -> list[nn.Parameter]:
    """Add a trainable student to a built network, select it, and return its parameters.

    peft raises ValueError for target layers that the model does not have.
    """
    adapters = Adapters(model, network.targets)
    adapters.add(ADAPTER, shape, trainable=True)
    adapters.use(ADAPTER)
    return adapters.parameters(ADAPTER)


def filled(model: nn.Module, fake: FakeTensorMode, cuda: bool = False) -> nn.Module:
    """Replace a model's tensors on the meta device by fake tensors on the CPU, in place.

    `cuda` also makes layer norms compute in float32.
    """
    cpu = torch.device("cpu")
    for module in model.modules():
        if cuda and isinstance(module, nn.LayerNorm):
            own = partial(in_float32, module.forward)
            module.forward = own  # type: ignore[method-assign]  # shadows the class's method on this instance only
        for name, found in module._parameters.items():
            if found is not None:
                made = FakeTensor(fake, found.data, cpu)
                module._parameters[name] = nn.Parameter(made, requires_grad=found.requires_grad)
        for held in (module._buffers, vars(module)):  # some keep tables of positions as plain attributes
            for name, tensor in held.items():
                if isinstance(tensor, Tensor):
                    held[name] = FakeTensor(fake, tensor, cpu)
    return model


def in_float32(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer norm as CUDA's autocast runs it: in float32, whatever the input's type."""
    with torch.autocast("cpu", enabled=False):
        return norm(x.float())


def predicted(model: nn.Module, given: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The velocity in float32, computed as FlowBackbone does. Raises UsageError for a model that cannot compute it."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        try:
            made = model(**given, return_dict=False)[0]
        except (RuntimeError, TypeError, ValueError, LookupError, AssertionError, AttributeError) as error:
            what = f"{type(model).__name__} that its config.json describes cannot take the family's arguments"
            raise UsageError(f"the {what}: {one_line(error)}") from error
        return (torch.stack(made) if isinstance(made, list) else made).float()
