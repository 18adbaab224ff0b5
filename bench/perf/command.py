"""`bench perf`: measure this machine, or compare two measurement files."""

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from rich.table import Table

from bench.backbones.flow import FlowBackbone
from bench.backbones.meter import Passes
from bench.backbones.size import Size
from bench.config.compute import Compute
from bench.config.descriptor import Descriptor
from bench.config.resolve import PRESETS, describe, resolve
from bench.config.spec import LoraSpec, SamplerSpec
from bench.errors import DamagedError, UsageError, one_line
from bench.perf import kernels, updates
from bench.perf.ceilings import copy_bandwidth, matrix_rate
from bench.perf.overhead import overhead
from bench.perf.timing import measure
from bench.prediction.cost import of_passes, of_update
from bench.printing import terminal
from bench.registry import find, task_names
from bench.scoring.loading import load_task, load_tasks
from bench.system.files import json_bytes, read_record
from bench.system.outputs import check_output, write_output

GPU_COMPUTE = Compute(resolution=512, precision="bfloat16")
SMALL, LARGE = "micro", "sd3"
"""Backbones measured on a CPU and on a GPU (there with random weights of the published shapes). They are fixed, because
measurements of two machines or versions are comparable only on the same model."""
PROMPTS, SCORED = 64, 96
"""Number of prompts to draw images for, and of images given to each scorer."""


def perf(output: Path | None, compare: tuple[Path, Path] | None) -> None:
    """Measure this machine, print tables and write the measurements to `output`; or print a comparison of two files.

    Raises UsageError if a file to compare was not written by `bench perf`, or `output` cannot be written.
    """
    console = terminal(130)
    if compare:
        console.print(comparison(*compare))
        return
    check_output(output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = measured(device, console.print)
    for table in tables(found):
        console.print(table)
    if output:
        write_output(output, json_bytes(found))


def measured(device: torch.device, say: Callable[[str], None] = lambda _: None) -> dict:
    """All measurements of a device, as the content of the output file. Takes a few minutes."""
    gpu = device.type == "cuda"
    say(f"measuring {name_of(device)}: this takes a few minutes and needs an otherwise idle machine")
    bandwidth, _ = copy_bandwidth(device)
    rates = {}
    for dtype in ("float32", "bfloat16"):
        rates[dtype], _ = matrix_rate(device, getattr(torch, dtype))
    compute = GPU_COMPUTE if gpu else Compute()
    descriptor = describe(LARGE if gpu else SMALL)
    make, texts = sources(descriptor, device)
    sampler_defaults = descriptor.defaults().get("sampler", {})
    guidance = sampler_defaults.get("guidance", SamplerSpec().guidance)
    ways = updates.variants(updates.TRAJECTORIES)
    if not gpu:
        # Gradient checkpointing and compiling are only worthwhile on GPUs.
        ways = tuple(way for way in ways if not way.changes)
    rollout_lab = updates.laboratory(make(compute), texts, guidance)
    rows = [
        updates.rollout_row(rollout_lab),
        *updates.table(make, compute, texts, guidance, ways),
    ]
    backbone = make(compute)
    size = backbone.size(backbone.encode(texts[:1]))
    for row in rows:
        if "error" not in row:
            row["flop_per_s"] = operations(row, size, compute) / row["seconds"]
            row["utilisation"] = row["flop_per_s"] / rates[compute.precision]
    return {
        "device": name_of(device),
        "measured": datetime.now(UTC).date().isoformat(),
        "versions": {p: version(p) for p in ("torch", "diffusers", "peft")},
        "threads": torch.get_num_threads(),
        "backbone": backbone.name,
        "compute": compute.model_dump(),
        "guidance": guidance,
        "flop_per_forward": size.flops,
        "ceilings": {"copy_bytes_per_s": bandwidth, "matrix_flop_per_s": rates},
        "kernels": kernels.table(device, bandwidth),
        "updates": rows,
        "overhead": None if gpu else overhead(),
        "scorers": None if gpu else scorers(descriptor.world, backbone),
        "presets": preset_hours(fastest(rows)) if gpu else None,
    }


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
    spec = LoraSpec(rank=updates.RANK, alpha=updates.ALPHA)
    return of_passes(Passes(**row["passes"]), size, spec, how)


def fastest(rows: list[dict]) -> float:
    """The highest rate of floating-point operations per second among the updates that fit into memory."""
    measured_updates = [row for row in rows if row["update"] != "rollout alone" and "error" not in row]
    return max(row["flop_per_s"] for row in measured_updates)


def preset_hours(flop_per_s: float) -> dict[str, float]:
    """Preset -> GPU-hours of its training at a measured rate of floating-point operations.

    Only the transformer is counted: decoding, scoring and held-out evaluation are additional.
    """
    hours = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        # This preset leaves the task to the user.
        tasks = ["geneval"] if path.stem == "nft-sd35" else None
        spec = resolve(None, tasks, preset=path)
        descriptor = describe(spec.backbone)
        assert descriptor.size and spec.budget.updates  # presets use models of known size and set a number of updates
        size = descriptor.size(spec.compute)
        work = find("method", spec.method).work(spec, spec.sampler.build(3.0))
        per_update = of_update(work, size, spec).model
        hours[path.stem] = per_update * spec.budget.updates / flop_per_s / 3600
    return hours


def tables(found: dict) -> list[Table]:
    """The measurements as three tables: kernels, updates, and everything else."""
    return [kernel_table(found), update_table(found), other_table(found)]


def kernel_table(found: dict) -> Table:
    """Times of the step kernels, as a share of the copy bandwidth and relative to eager PyTorch."""
    ceilings = found["ceilings"]
    matrix = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in ceilings["matrix_flop_per_s"].items())
    copy = f"{ceilings['copy_bytes_per_s'] / 1e9:.3g}"
    heads = ("operation", "batch", "type", "eager", "of copy", "Triton", "of copy", "times eager")
    table = Table(*heads, title=f"{found['device']}: copies {copy} GB/s, multiplies {matrix} TFLOP/s")
    for row in found["kernels"]:
        eager, triton = row["eager"], row.get("triton")
        faster = f"{eager['seconds'] / triton['seconds']:.1f}" if triton else "-"
        cells = (*_cell(eager), *_cell(triton), faster)
        table.add_row(row["operation"], str(row["batch"]), row["dtype"], *cells)
    return table


def update_table(found: dict) -> Table:
    """Throughput and peak memory of rollouts and updates."""
    work = f"{updates.TRAJECTORIES} trajectories of {updates.STEPS} steps, guidance {found['guidance']:g}"
    heads = ("update", "images/s", "times baseline", "NFE/s", "TFLOP/s", "of matrix rate", "memory, GB")
    table = Table(*heads, title=f"{found['backbone']}: {work}")
    baselines = [row for row in found["updates"] if row["update"] == updates.BASELINE]
    baseline = baselines[0].get("images_per_s") if baselines else None
    for row in found["updates"]:
        if "error" in row:
            table.add_row(row["update"], row["error"], "", "", "", "", "")
            continue
        table.add_row(
            row["update"],
            f"{row['images_per_s']:.3g}",
            f"{row['images_per_s'] / baseline:.2f}" if baseline else "-",
            f"{row['evaluations_per_s']:.4g}",
            f"{row['flop_per_s'] / 1e12:.3g}",
            f"{row['utilisation']:.0%}",
            f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else "-",
        )
    return table


def other_table(found: dict) -> Table:
    """The harness's overhead and the scorers' speeds (CPU), and the predicted GPU-hours of presets (GPU)."""
    table = Table("quantity", "value", title="other measurements")
    if found["overhead"]:
        table.add_row("share of an update outside the model", f"{found['overhead']['share']:.1%}")
    for row in found["scorers"] or []:
        table.add_row(f"images/s of {row['scorer']}", f"{row['images_per_s']:,.0f}")
    for preset, spent in (found["presets"] or {}).items():
        table.add_row(f"GPU-hours of {preset}, training without decoding and scoring", f"{spent:,.1f}")
    return table


def _cell(timing: dict | None) -> tuple[str, str]:
    """A kernel's time in microseconds and its share of the copy bandwidth; dashes if it was not measured."""
    if timing is None:
        return "-", "-"
    return f"{timing['seconds'] * 1e6:,.0f} us", f"{timing['share_of_bandwidth']:.0%}"


def comparison(first: Path, second: Path) -> Table:
    """A table of every speed in two measurement files and the ratio of the second to the first."""
    a, b = (speeds(read(path)) for path in (first, second))
    table = Table("speed", first.name, second.name, "second / first")
    for name in [*a, *(n for n in b if n not in a)]:
        one, two = a.get(name), b.get(name)
        shown = [f"{value:.4g}" if value else "-" for value in (one, two)]
        ratio = f"{two / one:.2f}" if one and two else "-"
        table.add_row(name, *shown, ratio)
    return table


def speeds(found: dict) -> dict[str, float]:
    """Name with unit -> speed, from the content of a measurement file; higher is better."""
    named = {"copy, GB/s": found["ceilings"]["copy_bytes_per_s"] / 1e9}
    for dtype, rate in found["ceilings"]["matrix_flop_per_s"].items():
        named[f"matrix {dtype}, TFLOP/s"] = rate / 1e12
    for row in found["kernels"]:
        for engine in ("eager", "triton"):
            if engine in row:
                label = f"{row['operation']} {row['batch']} {row['dtype']} {engine}, GB/s"
                named[label] = row["bytes"] / row[engine]["seconds"] / 1e9
    for row in found["updates"]:
        if "images_per_s" in row:
            named[f"{found['backbone']} {row['update']}, images/s"] = row["images_per_s"]
    for row in found["scorers"] or []:
        named[f"{row['scorer']}, images/s"] = row["images_per_s"]
    return named


def read(path: Path) -> dict:
    """The content of a measurement file. Raises UsageError for a file that `bench perf` did not write."""
    try:
        found = read_record(path)
        speeds(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DamagedError) as error:
        raise UsageError(f"{path} is not a measurement file of bench perf --output: {one_line(error)}") from error
    return found
