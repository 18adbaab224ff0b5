"""LoRA adapters on a transformer, through peft: create, switch, save, load, compare."""

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.errors import UsageError
from bench.files import write_atomic
from bench.hashing import content_hash

# As published for SD3.5-M (Flow-GRPO, DiffusionNFT, DiffusionOPD): every attention projection.
TARGETS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)  # fmt: skip
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Shape:
    """Size of an adapter."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS


class Adapters:
    """The named LoRA adapters of one transformer. `use(None)` is the base."""

    def __init__(self, transformer: nn.Module):
        self.transformer = transformer
        self.shapes: dict[str, Shape] = {}
        self._layers: list[nn.Module] = []
        self._trainable: set[str] = set()
        self._current: str | None = None
        self._found: dict[str, dict[str, nn.Parameter]] = {}

    def add(self, name: str, shape: Shape, seed: int = 0, trainable: bool = False) -> None:
        """Create an adapter that equals the base (B = 0, A Gaussian from `seed`)."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        config = LoraConfig(
            r=shape.rank, lora_alpha=shape.alpha, target_modules=list(shape.targets), init_lora_weights="gaussian"
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed)
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
            inject_adapter_in_model(config, self.transformer, name)
        self._layers = [m for m in self.transformer.modules() if isinstance(m, BaseTunerLayer)]
        self.shapes[name] = shape
        self._found.pop(name, None)
        for parameter in self.parameters(name):  # peft gives it the frozen weights' precision
            parameter.data = parameter.data.float()
        self._trainable |= {name} if trainable else set()
        wanted = {id(p) for adapter in self._trainable for p in self.parameters(adapter)}
        for parameter in self.transformer.parameters():  # injecting made the newcomer trainable, whatever we asked
            parameter.requires_grad_(id(parameter) in wanted)
        self._activate(None)

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
            pattern = re.compile(rf"(\.lora_[AB])\.{re.escape(name)}\.")
            named = self.transformer.named_parameters()
            self._found[name] = dict(sorted((pattern.sub(r"\1.", key), p) for key, p in named if pattern.search(key)))
        return self._found[name]

    def state(self, name: str) -> dict[str, Tensor]:
        """Copies of the adapter's tensors, keyed as peft keys them without the model prefix."""
        return {key: p.detach().clone() for key, p in self._named(name).items()}

    @torch.no_grad()
    def load_state(self, name: str, state: dict[str, Tensor], origin: str = "") -> None:
        """Copy tensors into an adapter. Raises UsageError unless keys and shapes match exactly."""
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
            parameter.copy_(state[key])

    def save(self, name: str, folder: Path, base: str = "", half: bool = False) -> None:
        """Write a folder that peft and diffusers load (adapter_config.json and adapter_model.safetensors)."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        shape = self.shapes[name]
        config = {
            "peft_type": "LORA",
            "r": shape.rank,
            "lora_alpha": shape.alpha,
            "target_modules": list(shape.targets),
            "base_model_name_or_path": base,
            "bias": "none",
            "inference_mode": True,
        }
        write_atomic(folder / CONFIG_FILE, (json.dumps(config, indent=1) + "\n").encode())
        state = self.state(name)
        tensors = {PEFT_PREFIX + k: (v.half() if half else v).contiguous() for k, v in state.items()}
        write_atomic(folder / WEIGHTS_FILE, save(tensors, {"format": "pt"}))

    def load(self, name: str, folder: Path, trainable: bool = False) -> None:
        """Add an adapter from a peft folder. Raises UsageError if it is unreadable or does not fit."""
        shape, state = read_adapter(folder)
        try:
            self.add(name, shape, trainable=trainable)
        except ValueError as error:  # peft: target modules not found
            raise UsageError(f"adapter {folder} does not fit this backbone: {error}") from error
        self.load_state(name, state, str(folder))

    @torch.no_grad()
    def deltas(self, name: str) -> dict[str, Tensor]:
        """Weight change of every adapted layer, alpha / r * B A, keyed by layer."""
        named, scale = self._named(name), self.shapes[name].alpha / self.shapes[name].rank
        layers = [key.removesuffix(".lora_A.weight") for key in named if key.endswith(".lora_A.weight")]
        return {
            layer: scale * named[f"{layer}.lora_B.weight"].float() @ named[f"{layer}.lora_A.weight"].float()
            for layer in layers
        }

    @torch.no_grad()
    def set_deltas(self, name: str, deltas: dict[str, Tensor]) -> float:
        """Set an adapter to the best approximation of weight changes at its rank (truncated SVD).

        Returns the share of the changes' squared norm that is kept.
        """
        named, shape = self._named(name), self.shapes[name]
        scale, kept, total = shape.alpha / shape.rank, 0.0, 0.0
        for layer, delta in deltas.items():
            u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
            root = (s[: shape.rank] / scale).sqrt()
            rank = len(root)
            a, b = named[f"{layer}.lora_A.weight"], named[f"{layer}.lora_B.weight"]
            a.zero_()[:rank] = root[:, None] * vh[:rank]
            b.zero_()[:, :rank] = u[:, :rank] * root
            kept, total = kept + float(s[:rank].square().sum()), total + float(s.square().sum())
        return kept / total if total else 1.0

    def delta_norm(self, name: str) -> float:
        """Frobenius norm of the weight change, 0 means equal to the base."""
        return float(sum(delta.square().sum() for delta in self.deltas(name).values())) ** 0.5


def read_adapter(folder: Path) -> tuple[Shape, dict[str, Tensor]]:
    """Shape and tensors of a peft folder. Raises UsageError with the file at fault."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise UsageError(f"no adapter at {folder}: {file} is missing")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        targets = config["target_modules"]
        shape = Shape(
            int(config["r"]), float(config["lora_alpha"]), tuple([targets] if isinstance(targets, str) else targets)
        )
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder / CONFIG_FILE} is not a LoRA configuration: {error!r}") from error
    try:
        state = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"corrupt weights file {folder / WEIGHTS_FILE}: {error}") from error
    return shape, {key.removeprefix(PEFT_PREFIX): value.float() for key, value in state.items()}


def adapter_hash(folder: Path) -> str:
    """Content hash of a peft folder's two files. Raises UsageError if one is missing."""
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise UsageError(f"no adapter at {folder}: {file} is missing")
    return content_hash([folder / CONFIG_FILE, folder / WEIGHTS_FILE])
