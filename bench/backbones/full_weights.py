"""Whole sets of one network's weights that take each other's place, by name: full fine-tuning.

A set is in float32, as adapters are. Under autocast a network in half precision computes with it as with its own, but
for what some families run outside of autocast, which is then more exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.backbones.pipeline_files import NETWORK_CONFIG, NETWORK_WEIGHTS
from bench.errors import BenchError, UsageError
from bench.lazy import torch, without_gradients
from bench.system.files import json_bytes, write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

OF_PEFT = ".base_layer"
"""Part of a name that peft adds where a layer has an adapter."""


@dataclass(frozen=True)
class Full:
    """The shape of a student that has all weights of the network, where others have a LoRA adapter's Shape."""


def original(key: str) -> str:
    """A tensor's name in the network before peft put adapters on it."""
    return key.replace(OF_PEFT, "")


def layer_of(key: str) -> str:
    """The name of a weight's layer, as adapters name it; of another parameter, such as a bias, its own name."""
    return key.removesuffix(".weight")


class FullWeights:
    """Sets of all weights of a network. `use(None)` is the network's own."""

    def __init__(self, network: nn.Module):
        self.network = network
        self._sets: dict[str, dict[str, nn.Parameter]] = {}
        self._places: dict[str, list[tuple[nn.Module, str]]] = {}
        """The modules that hold each parameter, and its name there; found once a set is added."""
        self._own: dict[str, nn.Parameter] = {}
        """The network's own parameters."""
        self._current: str | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._sets

    def add(self, name: str, trainable: bool) -> None:
        """Create a set that equals the network's own weights, in float32."""
        if not self._own:
            self._find()
        self._sets[name] = {
            key: torch.nn.Parameter(own.detach().to(torch.float32, copy=True), requires_grad=trainable)
            for key, own in self._own.items()
        }

    def _find(self) -> None:
        """Find the network's own parameters and where they belong; two modules may share one."""
        keys: dict[int, str] = {}
        found: dict[str, nn.Parameter] = {}
        for place, module in self.network.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None or ".lora_" in f".{place}.":
                    continue
                key = keys.setdefault(id(parameter), original(f"{place}.{name}" if place else name))
                found[key] = parameter
                self._places.setdefault(key, []).append((module, name))
        self._own = dict(sorted(found.items()))

    def use(self, name: str | None) -> None:
        """Put a set's parameters in the network's modules; None puts the network's own back."""
        if name == self._current:
            return
        chosen = self._own if name is None else self._sets[name]
        for key, parameter in chosen.items():
            for module, own in self._places[key]:
                module._parameters[own] = parameter
        self._current = name

    def named(self, name: str) -> dict[str, nn.Parameter]:
        """Name in the network -> parameter, sorted by name."""
        return self._sets[name]

    def changes(self, name: str) -> dict[str, Tensor]:
        """The difference of every parameter from the network's own in float32, under the name of its layer."""
        return {layer_of(key): (value - self._own[key].float()).detach() for key, value in self._sets[name].items()}

    @without_gradients
    def set_changes(self, name: str, changes: dict[str, Tensor]) -> None:
        """Set a set to the network's own weights plus changes, 0 where there is none.

        Raises UsageError for a change of something that the network does not have, and BenchError for values that are
        not finite.
        """
        keys = {layer_of(key): key for key in self._own}
        if foreign := sorted(changes.keys() - keys.keys()):
            raise UsageError(f"the network has no parameters that {len(foreign)} changes are of (first: {foreign[0]})")
        for layer, key in keys.items():
            value = self._own[key].float()
            if layer in changes:
                if not torch.isfinite(changes[layer]).all():
                    raise BenchError(f"the change of {layer} for the model {name!r} is not finite")
                value = value + changes[layer].view_as(value)
            self._sets[name][key].copy_(value)

    def save(self, name: str, folder: Path) -> None:
        """Write a folder from which diffusers' from_pretrained, and this project as a teacher, load the network."""
        from safetensors.torch import save

        before = self._current
        self.use(name)
        try:
            held = {original(key): value for key, value in self.network.state_dict().items() if ".lora_" not in key}
        finally:
            self.use(before)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"_class_name": type(self.network).__name__} | config_of(self.network)
        write_atomic(folder / NETWORK_CONFIG, json_bytes(config))
        # Buffers, such as tables of positions, are in the precision of the network.
        state = {key: _as_saved(value) for key, value in sorted(held.items())}
        write_atomic(folder / NETWORK_WEIGHTS, save(state, {"format": "pt"}))


def _as_saved(tensor: Tensor) -> Tensor:
    """On the host, numbers in float32."""
    tensor = tensor.detach().contiguous().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def config_of(network: nn.Module) -> dict:
    """The fields of a network's configuration in diffusers' format, without those that describe files and versions."""
    return {key: value for key, value in dict(network.config).items() if not key.startswith("_")}  # type: ignore[arg-type]
