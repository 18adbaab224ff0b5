"""The measurements of one machine, made section by section and resumed from what a file already holds."""

import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from bench.backbones.adapters import Shape
from bench.backbones.flow import FlowBackbone
from bench.backbones.meter import Passes
from bench.backbones.size import Size
from bench.config.compute import Compute
from bench.config.descriptor import Descriptor
from bench.config.resolve import PRESETS, describe, resolve
from bench.config.spec import SamplerSpec
from bench.errors import UsageError, unknown
from bench.perf import kernels, updates
from bench.perf.ceilings import copy_bandwidth, matrix_rate
from bench.perf.gate import gate
from bench.perf.timing import measure
from bench.perf.updates import ROLLOUT
from bench.prediction.cost import of_passes, of_update
from bench.registry import find, task_names
from bench.scoring.loading import load_task, load_tasks
from bench.store.provenance import code_hash

GPU_COMPUTE = Compute(resolution=512, precision="bfloat16")
SMALL, LARGE = "micro", "sd3"
"""Backbones measured on a CPU and on a GPU (there with random weights of the published shapes). They are fixed, because
measurements of two machines or versions are comparable only on the same model."""
PROMPTS, SCORED = 64, 96
"""Number of prompts to draw images for, and of images given to each scorer."""
SECTIONS = ("gate", "ceilings", "updates", "kernels", "overhead", "scorers", "presets")
"""What is measured, in this order. Overhead and scorers belong to CPUs, presets to GPUs (from their updates)."""
Save = Callable[[dict], None]


class Measurement:
    """What is known about a machine, and what is still to be measured."""

    def __init__(self, device: torch.device, found: dict | None = None):
        """`found` is an earlier, perhaps unfinished measurement to go on with.

        Raises UsageError if that was made on another machine, with other versions or settings.
        """
        self.device, self.gpu = device, device.type == "cuda"
        self.compute = GPU_COMPUTE if self.gpu else Compute()
        self.descriptor = describe(LARGE if self.gpu else SMALL)
        sampler = self.descriptor.defaults().get("sampler", {})
        self.guidance = sampler.get("guidance", SamplerSpec().guidance)
        self.make, self.texts = sources(self.descriptor, device)
        made_by = {
            "device": name_of(device),
            "versions": {p: version(p) for p in ("torch", "diffusers", "peft")},
            "code": code_hash(),
            "threads": torch.get_num_threads(),
            "compute": self.compute.model_dump(),
            "guidance": self.guidance,
        }
        for key, value in made_by.items():
            if found and found.get(key) != value:
                raise UsageError(
                    f"the file holds measurements with {key} {found.get(key)}, not {value}: name another file"
                )
        empty: dict[str, list | None] = {"kernels": [], "updates": []}
        empty |= dict.fromkeys(("overhead", "scorers", "presets"))
        today = {"measured": datetime.now(UTC).date().isoformat()}
        self.found: dict = made_by | today | empty | (found or {})

    def measure(self, only: tuple[str, ...], save: Save, say: Callable[[str], None]) -> dict:
        """Measure the sections `only` (empty: all) that are not known, and return everything.

        `save` is called after every row, so that an interrupted measurement can go on. Raises BenchError if a check of
        the gate fails.
        """
        if "presets" in only:
            only = (*only, "updates")
        for name in SECTIONS:
            # Nothing is timed before it was checked, and rates are shares of the ceilings.
            if not only or name in only or name in ("gate", "ceilings"):
                say(f"{name} ...")
                for _ in getattr(self, f"_{name}")():
                    save(self.found)
        return self.found

    def _gate(self) -> Iterator[None]:
        # Repeated when a measurement goes on: it takes seconds, and the code may have changed.
        self.found["gate"] = gate(self.device)
        yield

    def _ceilings(self) -> Iterator[None]:
        if "ceilings" in self.found:
            return
        bandwidth, _ = copy_bandwidth(self.device)
        rates = {name: matrix_rate(self.device, getattr(torch, name))[0] for name in ("float32", "bfloat16")}
        self.found["ceilings"] = {"copy_bytes_per_s": bandwidth, "matrix_flop_per_s": rates}
        yield

    def _updates(self) -> Iterator[None]:
        rows = self.found["updates"]
        rows[:] = [row for row in rows if "error" not in row]  # memory may have been taken by another process
        known = {row["update"] for row in rows}
        ways = [way for way in updates.variants(updates.TRAJECTORIES, self.gpu) if way.label not in known]
        if ROLLOUT in known and not ways:
            return
        backbone = self.make(self.compute)
        size = backbone.size(backbone.encode(self.texts[:1]))
        self.found |= {"backbone": backbone.name, "flop_per_forward": size.flops}
        if ROLLOUT not in known:
            rows.append(self._rated(updates.rollout_row(updates.laboratory(backbone, self.texts, self.guidance)), size))
            yield
        del backbone  # the variants build their own
        for row in updates.table(self.make, self.compute, self.texts, self.guidance, tuple(ways)):
            rows.append(self._rated(row, size))
            yield

    def _rated(self, row: dict, size: Size) -> dict:
        """A row with its rate of floating-point operations, unless it did not fit into memory."""
        if "error" in row:
            return row
        rate = operations(row, size, self.compute) / row["seconds"]
        highest = self.found["ceilings"]["matrix_flop_per_s"][self.compute.precision]
        return row | {"flop_per_s": rate, "utilisation": rate / highest}

    def _kernels(self) -> Iterator[None]:
        rows = self.found["kernels"]
        known = {(row["operation"], row["batch"], row["dtype"]) for row in rows}
        for row in kernels.table(self.device, self.found["ceilings"]["copy_bytes_per_s"], known):
            rows.append(row)
            yield

    def _overhead(self) -> Iterator[None]:
        if self.gpu or self.found["overhead"]:
            return
        # The training loop loads packages that a machine with a GPU need not have for a measurement.
        from bench.perf.overhead import overhead

        self.found["overhead"] = overhead()
        yield

    def _scorers(self) -> Iterator[None]:
        if self.gpu or self.found["scorers"]:
            return
        self.found["scorers"] = scorers(self.descriptor.world, self.make(self.compute))
        yield

    def _presets(self) -> Iterator[None]:
        if self.gpu and timed(self.found["updates"]):
            self.found["presets"] = preset_hours(fastest(self.found["updates"]))
            yield


def check_sections(only: tuple[str, ...], device: torch.device) -> None:
    """Raise UsageError for an unknown section, or one that is not measured on this device."""
    others = ("overhead", "scorers") if device.type == "cuda" else ("presets",)
    for name in only:
        if name not in SECTIONS:
            raise unknown("section", name, SECTIONS)
        if name in others:
            raise UsageError(f"{name} is not measured on a {'GPU' if device.type == 'cuda' else 'CPU'}: leave it out")


def name_of(device: torch.device) -> str:
    """The model name of a GPU, or of the CPU with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    cpu = models[0] if models else platform.machine()
    return f"{torch.get_num_threads()} threads of {cpu}"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def sources(descriptor: Descriptor, device: torch.device) -> tuple[Callable[[Compute], FlowBackbone], list[str]]:
    """A function that builds the backbone to measure, with random weights if the family can do so, and prompts."""
    if descriptor.shape_only:
        return partial(descriptor.shape_only, str(device)), [f"prompt {i}" for i in range(PROMPTS)]
    prompts = load_task("geneval", descriptor.world).prompts("train")[:PROMPTS]
    return partial(descriptor.load, str(device)), [prompt.text for prompt in prompts]


def scorers(world: str, backbone: FlowBackbone) -> list[dict]:
    """Images per second of every task's scorer for a world, on the CPU, at the backbone's image size."""
    latent = torch.zeros(1, *backbone.latent_shape, device=backbone.device)
    side = backbone.decode(latent).shape[-1]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(SCORED, 3, side, side, generator=generator)
    rows = []
    for task in load_tasks(tuple(task_names(["all"])), world).values():
        prompts = (task.prompts("test") * 2)[:SCORED]
        timing = measure(partial(task.score, images, prompts), torch.device("cpu"))
        row = {"scorer": task.scorer_name, "images_per_s": SCORED / timing.seconds}
        rows.append(row | timing.record())
    return rows


def operations(row: dict, size: Size, compute: Compute) -> float:
    """Floating-point operations of a row's passes, including the recomputation of gradient checkpointing."""
    how = compute.model_copy(update={"gradient_checkpointing": row["gradient_checkpointing"]})
    return of_passes(Passes(**row["passes"]), size, Shape(updates.RANK, updates.ALPHA), how)


def timed(rows: list[dict]) -> list[dict]:
    """The rows of updates that fit into memory."""
    return [row for row in rows if row["update"] != ROLLOUT and "error" not in row]


def fastest(rows: list[dict]) -> float:
    """The highest rate of floating-point operations per second among the updates that fit into memory."""
    return max(row["flop_per_s"] for row in timed(rows))


def preset_hours(flop_per_s: float) -> dict[str, float]:
    """Preset for SD3 -> GPU-hours of its training at a measured rate of floating-point operations.

    Only the transformer is counted: decoding, scoring and held-out evaluation are additional.
    """
    hours = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        # This preset leaves the task to the user.
        tasks = ["geneval"] if path.stem == "nft-sd35" else None
        spec = resolve(None, tasks, preset=path)
        if spec.backbone != "sd3":  # the rate was measured on its shape
            continue
        descriptor = describe(spec.backbone)
        assert descriptor.size and spec.budget.updates  # presets use models of known size and set a number of updates
        size = descriptor.size(spec.compute)
        work = find("method", spec.method).work(spec, descriptor.sampler(spec))
        per_update = of_update(work, size, spec).model
        hours[path.stem] = per_update * spec.budget.updates / flop_per_s / 3600
    return hours
