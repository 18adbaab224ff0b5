"""LoRA adapters on a transformer, through peft: create, switch, save, load, compare."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from bench.backbones.adapter_config import config_record
from bench.backbones.adapter_files import DIFFUSERS_PREFIX, METADATA_KEY, PEFT_PREFIX, read_adapter
from bench.errors import BenchError, UsageError, one_line, unknown
from bench.lazy import torch, without_gradients
from bench.system.files import json_bytes, remove_leftovers, write_atomic
from bench.weights.hub import CONFIG_FILE, DIFFUSERS_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn

IN_BLOCKS = re.compile(r"^(?:\w+\.)?(?:[a-zA-Z_]\w*\.\d+\.)+")
"""Beginning of a layer's name: `transformer_blocks.3.`, or `mid_block.attentions.0.transformer_blocks.0.`."""


@dataclass(frozen=True)
class Shape:
    """Size of an adapter."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | None = None
    """Ends of the names of its layers; None: the backbone's own."""

    def config(self, own: tuple[str, ...]) -> LoraConfig:
        """As peft's configuration, on a backbone whose own targets are these."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft says int, and takes any number
            target_modules=list(self.targets or own),
        )


def ending(layer: str) -> str:
    """A layer's name without the numbered blocks that it lies in: what its like have in every block."""
    return IN_BLOCKS.sub("", layer)


class Adapters:
    """The named LoRA adapters of one transformer. `use(None)` is the base."""

    def __init__(self, transformer: nn.Module, targets: tuple[str, ...]):
        """`targets`: layers of an adapter whose Shape does not say, ends of their names."""
        self.transformer, self.targets = transformer, targets
        self.configs: dict[str, LoraConfig] = {}
        self._layers: list[nn.Module] = []
        self._trainable: set[str] = set()
        self._current: str | None = None
        self._found: dict[str, dict[str, nn.Parameter]] = {}

    def add(self, name: str, shape: Shape | LoraConfig, seed: int = 0, trainable: bool = False) -> None:
        """Create an adapter that equals the base (B = 0, A Gaussian from `seed`).

        Raises UsageError for a Shape of layers that the transformer does not have, what peft raises for a LoraConfig.
        """
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        if isinstance(shape, Shape) and shape.targets not in (None, self.targets):
            self._check_targets(shape.targets)
        self.configs[name] = shape.config(self.targets) if isinstance(shape, Shape) else shape
        config = copy.deepcopy(self.configs[name])  # peft writes into it
        config.init_lora_weights = "gaussian"
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed)
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
            inject_adapter_in_model(config, self.transformer, name)
        self._layers = [m for m in self.transformer.modules() if isinstance(m, BaseTunerLayer)]
        self._found.pop(name, None)
        for parameter in self.parameters(name):  # peft gives it the frozen weights' precision
            parameter.data = parameter.data.float()
        self._trainable |= {name} if trainable else set()
        wanted = {id(p) for adapter in self._trainable for p in self.parameters(adapter)}
        for parameter in self.transformer.parameters():  # injecting made the newcomer trainable, whatever we asked
            parameter.requires_grad_(id(parameter) in wanted)
        self._activate(None)

    def _check_targets(self, targets: tuple[str, ...]) -> None:
        """Raise UsageError, naming the nearest, for an ending that no adaptable layer's name has."""
        from torch import nn

        inner = re.compile(r"\.(base_layer|lora_\w+)\b.*")  # of layers that have an adapter already
        kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
        adaptable = (key for key, layer in self.transformer.named_modules() if isinstance(layer, kinds))
        layers = {inner.sub("", key) for key in adaptable}
        for target in targets:
            if not any(f".{layer}".endswith(f".{target}") for layer in layers):
                raise unknown("layer in lora.targets", target, {ending(layer) for layer in layers})

    def use(self, name: str | None) -> None:
        """Make `name` the adapter of the next forward; None disables all."""
        if name != self._current:
            self._activate(name)

    def bound(self, module: nn.Module) -> Callable[..., Tensor]:
        """`module` under the adapter that is current now, whenever it is called; the then current one comes back."""
        name = self._current

        def call(*args) -> Tensor:
            outer = self._current
            self.use(name)
            try:
                return module(*args)
            finally:
                self.use(outer)

        return call

    def _activate(self, name: str | None) -> None:
        # peft's public set_adapter flips requires_grad of every layer on every call; switching twice a step would
        # cost more than the step. A test holds this equal to the public call.
        # Nor through Module.__setattr__, which looks for parameters and modules first.
        for layer in self._layers:
            layer.__dict__["_disable_adapters"] = name is None
            if name is not None:
                layer.__dict__["_active_adapter"] = [name]
        self._current = name

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The adapter's parameters, in a fixed order."""
        return list(self._named(name).values())

    def _named(self, name: str) -> dict[str, nn.Parameter]:
        if name not in self._found:
            own = re.escape(name)
            # DoRA's magnitude vector is saved without its parameter's name
            pattern = re.compile(rf"(\.lora_magnitude_vector)\.{own}\.weight$|(\.lora_[AB])\.{own}(?=\.(weight|bias)$)")
            named = self.transformer.named_parameters()
            self._found[name] = dict(sorted((pattern.sub(r"\1\2", key), p) for key, p in named if pattern.search(key)))
        return self._found[name]

    def _adapted(self, name: str) -> dict[str, LoraLayer]:
        """Layers that have the adapter, by their place in the transformer."""
        from peft.tuners.lora import LoraLayer

        layers = self.transformer.named_modules()
        return dict(sorted((k, m) for k, m in layers if isinstance(m, LoraLayer) and name in m.lora_A))

    def state(self, name: str) -> dict[str, Tensor]:
        """Copies of the adapter's tensors, keyed as peft keys them without the model prefix."""
        return {key: p.detach().clone() for key, p in self._named(name).items()}

    @without_gradients
    def load_state(self, name: str, state: dict[str, Tensor], origin: str = "") -> None:
        """Copy tensors into an adapter. Raises UsageError unless keys and shapes match exactly."""
        from peft import set_peft_model_state_dict

        mine = self._named(name)
        missing, extra = sorted(mine.keys() - state.keys()), sorted(state.keys() - mine.keys())
        where = f" in {origin}" if origin else ""
        if missing or extra:
            raise UsageError(
                f"adapter keys do not fit this backbone{where}: {len(missing)} missing (first: {missing[:1]}), "
                f"{len(extra)} unexpected (first: {extra[:1]})"
            )
        for key, parameter in mine.items():
            if parameter.shape != state[key].shape:
                raise UsageError(
                    f"adapter tensor {key}{where} has shape {tuple(state[key].shape)}, not {tuple(parameter.shape)}"
                )
            if not torch.isfinite(state[key]).all():
                raise UsageError(f"adapter tensor {key}{where} has values that are not finite")
        set_peft_model_state_dict(self.transformer, state, name)

    def save(self, name: str, folder: Path, base: str = "") -> None:
        """Write a folder that peft, diffusers and this project load; `base` is the model's hub id or path.

        diffusers finds tensors by other names than peft, and safetensors knows no second name for the same bytes, so
        they are written twice: for SD3.5-Medium at rank 32 that is 75 MB, beside a checkpoint of at least 300 MB.
        """
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        record = config_record(self.configs[name])
        config = record | {"base_model_name_or_path": base, "inference_mode": True}
        write_atomic(folder / CONFIG_FILE, json_bytes(config))
        state = {key: value.contiguous() for key, value in self.state(name).items()}
        write_atomic(folder / WEIGHTS_FILE, save({PEFT_PREFIX + k: v for k, v in state.items()}, {"format": "pt"}))
        # one entry: safetensors writes several in an order that changes from one time to the next
        header = {METADATA_KEY: json.dumps({DIFFUSERS_PREFIX + key: value for key, value in record.items()})}
        write_atomic(folder / DIFFUSERS_FILE, save({DIFFUSERS_PREFIX + k: v for k, v in state.items()}, header))

    def load(self, name: str, folder: Path, trainable: bool = False) -> None:
        """Add an adapter from a folder or file that peft or diffusers wrote.

        Raises UsageError if it is unreadable, does not fit, or has a setting that cannot be carried out.
        """
        config, state = read_adapter(folder)
        try:
            self.add(name, config, trainable=trainable)
        except (ValueError, TypeError, re.error) as error:  # of peft: layers that are not there, or cannot be adapted
            cause = shorten(one_line(error), 300, placeholder=" ...")  # peft lists every layer that it looked for
            raise UsageError(f"adapter {folder} does not fit this backbone: {cause}") from error
        self.load_state(name, state, str(folder))
        if not math.isfinite(self.delta_norm(name)):
            raise UsageError(
                f"adapter {folder}: its change of the weights is not finite in float32 (lora_alpha is "
                f"{config.lora_alpha:g} at rank {config.r})"
            )

    @without_gradients
    def deltas(self, name: str) -> dict[str, Tensor]:
        """What an adapter adds to the weight of every layer that it adapts, keyed by layer, in float32; what it adds to
        a bias is keyed by the layer with `.bias`.

        s B A with the layer's own scale s. DoRA (arXiv 2402.09353, Eq. 5) instead gives a row w of W + s B A the
        length m, so it adds m w / |w| less that row of W.
        """
        found = {}
        for place, layer in self._adapted(name).items():
            delta = layer.get_delta_weight(name).float()  # type: ignore[attr-defined]  # peft declares it of each kind
            if name in layer.lora_magnitude_vector:
                base = layer.get_base_layer().weight.float()
                rows = (base + delta).flatten(1)
                magnitude = layer.lora_magnitude_vector[name].get_parameter("weight").flatten()
                delta = (rows * (magnitude / rows.norm(dim=1))[:, None]).view_as(base) - base
            found[place] = delta
            if layer.lora_bias[name]:
                found[f"{place}.bias"] = layer.scaling[name] * layer.lora_B[name].bias
        return found

    @without_gradients
    def set_deltas(self, name: str, deltas: dict[str, Tensor]) -> float:
        """Set an adapter to the best approximation of weight changes at its rank (truncated SVD); layers without a
        change become the base's.

        Returns the share of the changes' squared norm that is kept. Raises UsageError for a change of what the adapter
        cannot change, BenchError for one that is not finite.
        """
        layers, config = self._adapted(name), self.configs[name]
        if config.use_dora or config.lora_bias:
            field = "use_dora" if config.use_dora else "lora_bias"
            raise UsageError(f"weight changes are put into plain LoRA alone; the adapter {name!r} has {field}")
        if foreign := sorted(deltas.keys() - layers.keys()):
            raise UsageError(
                f"the adapter {name!r} cannot take over {len(foreign)} of {len(deltas)} changes, the first is that of "
                f"{foreign[0]}: lora.targets must name every layer that changes, and biases stay the base's"
            )
        kept = total = 0.0
        for place, layer in layers.items():
            # Of a convolution too; views.
            a, b = (side[name].get_parameter("weight").flatten(1) for side in (layer.lora_A, layer.lora_B))
            scale = layer.scaling[name]
            if place not in deltas:
                b.zero_()
                continue
            if not torch.isfinite(deltas[place]).all():
                raise BenchError(f"the weight change of {place} for the adapter {name!r} is not finite")
            u, s, vh = torch.linalg.svd(deltas[place].flatten(1).double(), full_matrices=False)
            root = (s[: len(a)] / scale).sqrt()
            rank = len(root)
            a.zero_()[:rank] = root[:, None] * vh[:rank]
            b.zero_()[:, :rank] = u[:, :rank] * root
            kept, total = kept + float(s[:rank].square().sum()), total + float(s.square().sum())
        return kept / total if total else 1.0

    def delta_norm(self, name: str) -> float:
        """Frobenius norm of the weight change, 0 means equal to the base."""
        return float(sum(delta.square().sum() for delta in self.deltas(name).values())) ** 0.5
