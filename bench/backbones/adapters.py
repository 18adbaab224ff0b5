"""Students and teachers on one network: LoRA adapters through peft, and sets of all weights (full_weights.py)."""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from bench.backbones.adapter_config import config_record
from bench.backbones.adapter_files import METADATA_KEY, PEFT_PREFIX, read_adapter
from bench.backbones.full_weights import Full, FullWeights, config_of
from bench.backbones.pipeline_files import NETWORKS, network_folder
from bench.backbones.rank_gate import gate_of, gated, set_gate
from bench.errors import BenchError, UsageError, one_line, unknown
from bench.lazy import torch, without_gradients
from bench.system.files import json_bytes, remove_leftovers, write_atomic
from bench.weights.hub import CONFIG_FILE, DIFFUSERS_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn

    from bench.config.spec import LoraSpec, Spec

IN_BLOCKS = re.compile(r"^(?:\w+\.)?(?:[a-zA-Z_]\w*\.\d+\.)+")
"""Start of a layer's name: `transformer_blocks.3.`, or `mid_block.attentions.0.transformer_blocks.0.`."""


@dataclass(frozen=True)
class Shape:
    """Rank, alpha, target layers and kind of a LoRA adapter."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | None = None
    """Suffixes of the names of the adapted layers; None means the backbone's default targets."""
    dora: bool = False
    rank_stabilised: bool = False
    ranks: tuple[tuple[str, int], ...] = ()
    """Suffix of layers' names, and their rank where it is another one."""
    alphas: tuple[tuple[str, float], ...] = ()

    @staticmethod
    def of(lora: LoraSpec) -> Shape:
        """The shape that a spec asks for."""
        ranks, alphas = tuple(sorted(lora.ranks.items())), tuple(sorted(lora.alphas.items()))
        return Shape(lora.rank, lora.alpha, lora.targets, lora.dora, lora.rank_stabilised, ranks, alphas)

    def config(self, own: tuple[str, ...]) -> LoraConfig:
        """peft's configuration for this shape; `own` are the backbone's default targets."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # annotated as int, but peft accepts any number
            target_modules=list(self.targets or own),
            use_dora=self.dora,
            use_rslora=self.rank_stabilised,
            rank_pattern=_by_pattern(self.ranks),
            alpha_pattern=_by_pattern(self.alphas),
        )


def student_shape(spec: Spec) -> Shape | Full:
    """The shape of the student that a spec asks for."""
    return Full() if spec.full_finetuning else Shape.of(spec.lora)


def _by_pattern(by_suffix: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """As peft takes it: a key is a regular expression for the end of a layer's name."""
    return {re.escape(suffix): value for suffix, value in by_suffix}


def as_json(value: Any) -> str:
    """A setting as JSON, in which lists and tuples are the same."""
    return json.dumps(value, default=str)


def ending(layer: str) -> str:
    """A layer's name without the numbered blocks that contain it: the part that is the same in every block."""
    return IN_BLOCKS.sub("", layer)


def _change(layer: LoraLayer, name: str) -> Tensor:
    """The change of a layer's weight by an adapter, s B A or s B diag(gate) A, in float32."""
    if (gate := gate_of(layer, name)) is None:
        return layer.get_delta_weight(name).float()  # type: ignore[attr-defined]  # declared by subclasses only
    a, b = (factors[name].get_parameter("weight").flatten(1) for factors in (layer.lora_A, layer.lora_B))
    change = layer.scaling[name] * (b @ gated(a, gate))
    return change.view_as(layer.get_base_layer().get_parameter("weight")).float()


class Adapters:
    """The named LoRA adapters, and sets of all weights, of one network. `use(None)` is the base."""

    def __init__(self, transformer: nn.Module, targets: tuple[str, ...], folder: str = NETWORKS[0]):
        """`targets` are suffixes of the names of the layers to adapt where a Shape names none; `folder` is the folder
        of the network in a pipeline, by which diffusers' files name it."""
        self.transformer, self.targets, self.folder = transformer, targets, folder
        self.configs: dict[str, LoraConfig] = {}
        """peft's configuration of every adapter; sets of all weights have none."""
        self._full = FullWeights(transformer)
        self._layers: list[nn.Module] = []
        self._trainable: set[str] = set()
        self._current: str | None = None
        self._found: dict[str, dict[str, nn.Parameter]] = {}

    def add(self, name: str, shape: Shape | Full | LoraConfig, seed: int = 0, trainable: bool = False) -> None:
        """Create an adapter that leaves the base unchanged (B = 0, A Gaussian from `seed`), or a set of all weights.

        Raises UsageError for a Shape that targets layers the transformer does not have. For a LoraConfig, peft's own
        errors pass through.
        """
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.use(None)  # peft, and the search for parameters, must find the base's own
        if isinstance(shape, Full):
            self._full.add(name, trainable)
            return
        if isinstance(shape, Shape):
            self._check_shape(shape)
        self.configs[name] = shape.config(self.targets) if isinstance(shape, Shape) else shape
        config = copy.deepcopy(self.configs[name])  # peft modifies the object that it is given
        config.init_lora_weights = "gaussian"
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed)
            # Several adapters on one model are intended here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, self.transformer, name)
        self._layers = [m for m in self.transformer.modules() if isinstance(m, BaseTunerLayer)]
        self._leave_casts_to_autocast()
        self._multiply_by_weight()
        self._found.pop(name, None)
        # peft creates the adapter in the precision of the frozen weights; we train in float32.
        for parameter in self.parameters(name):
            parameter.data = parameter.data.float()
        if trainable:
            self._trainable.add(name)
        # Injection makes every new adapter trainable, so requires_grad must be set again.
        wanted = {id(p) for adapter in self._trainable for p in self.parameters(adapter)}
        for parameter in self.transformer.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
        self._activate(None)

    def _leave_casts_to_autocast(self) -> None:
        """Stop peft from casting every layer's input to the adapter's float32, which autocast would only undo.

        The bits are the same: float32 holds every bfloat16 and float16 number. Variants such as DoRA also use the
        input outside of matrix products, so their layers keep peft's cast.
        """
        for layer in self._layers:
            layer.cast_input_dtype_enabled = bool(getattr(layer, "lora_variant", None))  # type: ignore[assignment]

    def _multiply_by_weight(self) -> None:
        """Give linear layers in float32 the forward pass of bench/backbones/lora_forward.py.

        Layers in half precision would never use it, and it would keep torch.compile from compiling the blocks once for
        all: the function of every layer is another one.
        """
        from peft.tuners.lora import Linear

        from bench.backbones.lora_forward import by_weight  # with torch itself, which torch.compile can trace

        for layer in self._layers:
            if isinstance(layer, Linear) and layer.base_layer.weight.dtype == torch.float32:
                layer.__dict__["forward"] = partial(by_weight, layer)

    def _check_shape(self, shape: Shape) -> None:
        """Raise UsageError for targets that the network does not have, and ranks or alphas of other layers."""
        if shape.targets not in (None, self.targets):
            self._check_targets(shape.targets)
        targets = [f".{target}" for target in shape.targets or self.targets]
        for section, own in (("ranks", shape.ranks), ("alphas", shape.alphas)):
            for suffix in (f".{layer}" for layer, _ in own):
                if not any(target.endswith(suffix) or suffix.endswith(target) for target in targets):
                    raise unknown(f"layer in lora.{section}", suffix[1:], [target[1:] for target in targets])

    def _check_targets(self, targets: tuple[str, ...]) -> None:
        """Raise UsageError, with the nearest valid value, for a suffix that no adaptable layer's name has."""
        from torch import nn

        inner = re.compile(r"\.(base_layer|lora_\w+)\b.*")  # parts that peft adds to a layer that has an adapter
        kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
        adaptable = (key for key, layer in self.transformer.named_modules() if isinstance(layer, kinds))
        layers = {inner.sub("", key) for key in adaptable}
        for target in targets:
            if not any(f".{layer}".endswith(f".{target}") for layer in layers):
                raise unknown("layer in lora.targets", target, {ending(layer) for layer in layers})

    def use(self, name: str | None) -> None:
        """Select the adapter for the following forward passes; None disables all adapters."""
        if name != self._current:
            self._activate(name)

    def gate(self, name: str, factors: list[float]) -> None:
        """Multiply the rank's channels of a plain LoRA adapter by `factors`, one each, in the following passes.

        For adapters only. The weight change becomes s B diag(factors) A. `save` and `deltas` contain the factors;
        `state` does not.
        """
        gate = torch.tensor(factors, device=self.parameters(name)[0].device)
        for layer in self._adapted(name).values():
            set_gate(layer, name, gate)

    def bound(self, module: nn.Module) -> Callable[..., Tensor]:
        """`module` as a function that always runs under the adapter selected now, then restores the selection."""
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
        # peft's public set_adapter changes requires_grad of every layer on each call. Two switches per sampling step
        # would cost more than the step itself. A test checks that the result equals that of the public call.
        # Module.__setattr__ is bypassed as well: it first searches for parameters and submodules.
        is_full = name in self._full
        self._full.use(name if is_full else None)
        for layer in self._layers:
            layer.__dict__["_disable_adapters"] = name is None or is_full
            if not (name is None or is_full):
                layer.__dict__["_active_adapter"] = [name]
        self._current = name

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The adapter's parameters, sorted by name."""
        return list(self.named(name).values())

    def add_like(self, name: str, other: str) -> None:
        """Create another adapter, or set of all weights, with the shape and the values of one that exists."""
        self.add(name, Full() if other in self._full else self.configs[other])
        self.load_state(name, self.state(other))

    def named(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters by their keys: peft's without the model prefix, or the names in the network."""
        if name in self._full:
            return self._full.named(name)
        if name not in self._found:
            own = re.escape(name)
            # peft saves DoRA's magnitude vector without the parameter's name ("weight").
            pattern = re.compile(rf"(\.lora_magnitude_vector)\.{own}\.weight$|(\.lora_[AB])\.{own}(?=\.(weight|bias)$)")
            matching = ((key, p) for key, p in self.transformer.named_parameters() if pattern.search(key))
            self._found[name] = dict(sorted((pattern.sub(r"\1\2", key), p) for key, p in matching))
        return self._found[name]

    def _adapted(self, name: str) -> dict[str, LoraLayer]:
        """The layers that have the adapter, by their name in the transformer."""
        from peft.tuners.lora import LoraLayer

        layers = ((key, m) for key, m in self.transformer.named_modules() if isinstance(m, LoraLayer))
        return dict(sorted((key, layer) for key, layer in layers if name in layer.lora_A))

    def state(self, name: str) -> dict[str, Tensor]:
        """Copies of the adapter's tensors, under peft's keys without the model prefix."""
        return {key: p.detach().clone() for key, p in self.named(name).items()}

    @without_gradients
    def _gated_state(self, name: str) -> dict[str, Tensor]:
        """As `state`, with the factors of a gate multiplied into A."""
        state = self.state(name)
        for place, layer in self._adapted(name).items():
            if (gate := gate_of(layer, name)) is not None:
                key = f"{place}.lora_A.weight"
                state[key] = gated(state[key], gate)
        return state

    @without_gradients
    def load_state(self, name: str, state: dict[str, Tensor], origin: str = "") -> None:
        """Copy tensors into an adapter; `origin` names their file in errors.

        Raises UsageError unless keys and shapes match exactly and all values are finite.
        """
        from peft import set_peft_model_state_dict

        self._require_fit(name, state, origin)
        if name in self._full:
            mine = self.named(name)
            torch._foreach_copy_(list(mine.values()), [state[key].to(p.device) for key, p in mine.items()])
        else:
            set_peft_model_state_dict(self.transformer, state, name)

    def _require_fit(self, name: str, state: dict[str, Tensor], origin: str) -> None:
        """Raise UsageError, as `load_state`, for tensors that cannot be copied into an adapter."""
        mine = self.named(name)
        missing = sorted(mine.keys() - state.keys())
        extra = sorted(state.keys() - mine.keys())
        where = f" in {origin}" if origin else ""
        kind = "model" if name in self._full else "adapter"
        if missing or extra:
            raise UsageError(
                f"{kind} keys do not match this backbone{where}: {len(missing)} missing (first: {missing[:1]}), "
                f"{len(extra)} unexpected (first: {extra[:1]})"
            )
        for key, parameter in mine.items():
            if parameter.shape != state[key].shape:
                raise UsageError(
                    f"{kind} tensor {key}{where} has shape {tuple(state[key].shape)}, not {tuple(parameter.shape)}"
                )
            if not torch.isfinite(state[key]).all():
                raise UsageError(f"{kind} tensor {key}{where} has values that are not finite")

    def save(self, name: str, folder: Path, base: str = "") -> None:
        """Write a folder that peft, diffusers and this project can load; `base` is the model's hub id or path.

        A set of all weights becomes a folder of the network in diffusers' format. An adapter's tensors are written
        twice, because diffusers expects different names from peft and safetensors cannot store one tensor under two
        names. For SD3.5-Medium at rank 32 the copy takes 75 MB; a checkpoint takes at least 300.
        """
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if name in self._full:
            self._full.save(name, folder)
            return
        record = config_record(self.configs[name])
        config = record | {"base_model_name_or_path": base, "inference_mode": True}
        write_atomic(folder / CONFIG_FILE, json_bytes(config))
        state = {key: value.contiguous() for key, value in self._gated_state(name).items()}
        for_peft = {PEFT_PREFIX + key: value for key, value in state.items()}
        write_atomic(folder / WEIGHTS_FILE, save(for_peft, {"format": "pt"}))
        # Only one metadata entry: safetensors writes several in an order that varies, and so would the file's hash.
        header = {METADATA_KEY: json.dumps({f"{self.folder}.{key}": value for key, value in record.items()})}
        for_diffusers = {f"{self.folder}.{key}": value for key, value in state.items()}
        write_atomic(folder / DIFFUSERS_FILE, save(for_diffusers, header))

    def load(self, name: str, folder: Path, trainable: bool = False) -> None:
        """Add an adapter from a folder or file written by peft or diffusers, or a set of all weights from a network's.

        Raises UsageError if it cannot be read, does not match this backbone, or has a setting that is not supported.
        """
        if network := network_folder(folder):
            self._load_full(name, network, trainable)
            return
        self.load_state(name, self._added(name, folder, trainable), str(folder))
        config = self.configs[name]
        # Finite factors can still overflow in their product or scale.
        if not math.isfinite(self.delta_norm(name)):
            raise UsageError(
                f"adapter {folder}: the weight change that it computes is not finite in float32 (lora_alpha is "
                f"{config.lora_alpha:g} at rank {config.r})"
            )

    def require_fit(self, folder: Path) -> None:
        """Raise UsageError, as `load`, for an adapter that does not match this network, which may have no weights."""
        name = "to be checked"
        self._require_fit(name, self._added(name, folder), str(folder))

    def _added(self, name: str, folder: Path, trainable: bool = False) -> dict[str, Tensor]:
        """Add an adapter of the shape of one in a folder or file, and return the tensors of that."""
        config, state = read_adapter(folder)
        try:
            self.add(name, config, trainable=trainable)
        except (ValueError, TypeError, re.error) as error:  # from peft, for missing layers or unsupported layer types
            cause = shorten(one_line(error), 300, placeholder=" ...")  # peft lists every layer that it looked for
            raise UsageError(f"adapter {folder} does not match this backbone: {cause}") from error
        return state

    def _load_full(self, name: str, folder: Path, trainable: bool) -> None:
        """Add a set of all weights from a network of the base's architecture, in a folder in diffusers' format."""
        from bench.backbones.whole_models import read_network

        found = read_network(type(self.transformer), folder, torch.float32)
        mine, theirs = config_of(self.transformer), config_of(found)
        for field in sorted(mine.keys() | theirs.keys()):
            if as_json(mine.get(field)) != as_json(theirs.get(field)):
                raise UsageError(
                    f"{folder} does not match this backbone: its {field} is {as_json(theirs.get(field))[:60]}, not "
                    f"{as_json(mine.get(field))[:60]}"
                )
        self.add(name, Full(), trainable=trainable)
        self.load_state(name, dict(found.named_parameters()), str(folder))

    @without_gradients
    def deltas(self, name: str) -> dict[str, Tensor]:
        """The weight change of each adapted layer in float32, by layer name; changes of biases end in `.bias`.

        A change is s B A with the layer's scale s. DoRA (arXiv 2402.09353, Eq. 5) rescales each row w of W + s B A to
        length m, so its change is m w / |w| minus that row of W. Raises UsageError for a teacher that is no adapter.
        """
        if name in self._full:
            return self._full.changes(name)
        if name not in self.configs:
            raise UsageError(f"{name} is a whole model: only adapters can be merged")
        found = {}
        for place, layer in self._adapted(name).items():
            delta = _change(layer, name)
            if name in layer.lora_magnitude_vector:
                base = layer.get_base_layer().get_parameter("weight").float()
                rows = (base + delta).flatten(1)
                magnitude = layer.lora_magnitude_vector[name].get_parameter("weight").flatten()
                scale = magnitude / rows.norm(dim=1)
                delta = (rows * scale[:, None]).view_as(base) - base
            found[place] = delta
            if layer.lora_bias[name]:
                found[f"{place}.bias"] = layer.scaling[name] * layer.lora_B[name].bias
        return found

    @without_gradients
    def set_deltas(self, name: str, deltas: dict[str, Tensor]) -> float:
        """Set an adapter to the best approximation of weight changes at its rank (truncated SVD), all weights exactly.

        Adapted layers for which no change is given are set to zero change. Returns the fraction of the changes' squared
        norm that is kept. Raises UsageError for a change that the adapter cannot represent, and BenchError for values
        that are not finite.
        """
        if name in self._full:
            self._full.set_changes(name, deltas)
            return 1.0
        layers, config = self._adapted(name), self.configs[name]
        if config.use_dora or config.lora_bias:
            field = "use_dora" if config.use_dora else "lora_bias"
            raise UsageError(f"weight changes can only be stored in plain LoRA; the adapter {name!r} has {field}")
        if foreign := sorted(deltas.keys() - layers.keys()):
            raise UsageError(
                f"the adapter {name!r} cannot represent {len(foreign)} of {len(deltas)} weight changes (first: "
                f"{foreign[0]}): lora.targets must include every layer that changes, and biases cannot be changed"
            )
        kept = total = 0.0
        for place, layer in layers.items():
            # Matrices even for convolutions, and views: the assignments below write into the parameters.
            a = layer.lora_A[name].get_parameter("weight").flatten(1)
            b = layer.lora_B[name].get_parameter("weight").flatten(1)
            scale = layer.scaling[name]
            if place not in deltas:
                b.zero_()
                continue
            if not torch.isfinite(deltas[place]).all():
                raise BenchError(f"the weight change of {place} for the adapter {name!r} is not finite")
            change = deltas[place].flatten(1).double()
            u, s, vh = torch.linalg.svd(change, full_matrices=False)
            # Both factors get the square root of the singular values, so that their norms are equal.
            root = (s[: len(a)] / scale).sqrt()
            rank = len(root)
            a.zero_()[:rank] = root[:, None] * vh[:rank]
            b.zero_()[:, :rank] = u[:, :rank] * root
            kept += float(s[:rank].square().sum())
            total += float(s.square().sum())
        return kept / total if total else 1.0

    def delta_norm(self, name: str) -> float:
        """Frobenius norm of all weight changes together; 0 if the adapter equals the base."""
        squares = [delta.square().sum() for delta in self.deltas(name).values()]
        return float(sum(squares)) ** 0.5
