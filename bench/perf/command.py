"""`bench perf`: measure this machine, or compare two measurements."""

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
"""Registered backbones that are measured on a CPU and, by its shapes, on a GPU: always the same two, since measurements
of two machines or versions say something of each other on one model alone."""
PROMPTS, SCORED = 64, 96


def perf(output: Path | None, compare: tuple[Path, Path] | None) -> None:
    """Print tables; write the numbers to `output`. Raises UsageError for files that are no measurements."""
    console = terminal(130)
    if compare:
        console.print(comparison(*compare))
        return
    check_output(output)
    found = measured(torch.device("cuda" if torch.cuda.is_available() else "cpu"), console.print)
    for table in tables(found):
        console.print(table)
    if output:
        write_output(output, json_bytes(found))


def measured(device: torch.device, say: Callable[[str], None] = lambda _: None) -> dict:
    """Everything there is to know of this machine; some minutes."""
    gpu = device.type == "cuda"
    say(f"measuring {name_of(device)}; a few minutes, on an otherwise idle machine")
    bandwidth, _ = copy_bandwidth(device)
    rates = {dtype: matrix_rate(device, getattr(torch, dtype))[0] for dtype in ("float32", "bfloat16")}
    compute = GPU_COMPUTE if gpu else Compute()
    descriptor = describe(LARGE if gpu else SMALL)
    make, texts = sources(descriptor, device)
    guidance = descriptor.defaults().get("sampler", {}).get("guidance", SamplerSpec().guidance)
    ways = updates.variants(updates.TRAJECTORIES)
    ways = ways if gpu else tuple(way for way in ways if not way.changes)  # recomputing and compiling are for GPUs
    rows = [
        updates.rollout_row(updates.laboratory(make(compute), texts, guidance)),
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
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = next((x.partition(":")[2].strip() for x in _cpu_info() if x.startswith("model name")), platform.machine())
    return f"{torch.get_num_threads()} threads of {cpu}"


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def sources(descriptor: Descriptor, device: torch.device) -> tuple[Callable[[Compute], FlowBackbone], list[str]]:
    """How to make the backbone that is measured, by its shapes where it says how, and prompts for it."""
    if descriptor.shape_only:
        return partial(descriptor.shape_only, str(device)), [f"prompt {i}" for i in range(PROMPTS)]
    prompts = load_task("geneval", descriptor.world).prompts("train")[:PROMPTS]
    return partial(descriptor.load, str(device)), [prompt.text for prompt in prompts]


def scorers(world: str, backbone: FlowBackbone) -> list[dict]:
    """Pictures a second of every task's scorer on a world, at the size in which a backbone draws."""
    side = backbone.decode(torch.zeros(1, *backbone.latent_shape, device=backbone.device)).shape[-1]
    images = torch.rand(SCORED, 3, side, side, generator=torch.Generator().manual_seed(0))
    rows = []
    for task in load_tasks(tuple(task_names(["all"])), world).values():
        prompts = (task.prompts("test") * 2)[:SCORED]
        timing = measure(partial(task.score, images, prompts), torch.device("cpu"))
        rows.append({"scorer": task.scorer_name, "images_per_s": SCORED / timing.seconds} | timing.record())
    return rows


def operations(row: dict, size: Size, compute: Compute) -> float:
    """Floating-point operations of a row's work: forward passes, and training passes with what checkpointing computes
    again."""
    how = compute.model_copy(update={"gradient_checkpointing": row["gradient_checkpointing"]})
    spec = LoraSpec(rank=updates.RANK, alpha=updates.ALPHA)
    return of_passes(Passes(**row["passes"]), size, spec, how)


def fastest(rows: list[dict]) -> float:
    """Operations a second of the update that makes most."""
    return max(row["flop_per_s"] for row in rows if row["update"] != "rollout alone" and "error" not in row)


def preset_hours(flop_per_s: float) -> dict[str, float]:
    """GPU-hours of every preset's training at a measured rate of operations, the transformer's alone: decoding, scoring
    and held-out evaluation come on top."""
    hours = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        tasks = ["geneval"] if path.stem == "nft-sd35" else None
        spec = resolve(None, tasks, preset=path)
        descriptor = describe(spec.backbone)
        assert descriptor.size and spec.budget.updates  # presets are of models of known size, and say how many updates
        size = descriptor.size(spec.compute)
        work = find("method", spec.method).work(spec, spec.sampler.build(3.0))
        hours[path.stem] = of_update(work, size, spec).model * spec.budget.updates / flop_per_s / 3600
    return hours


def tables(found: dict) -> list[Table]:
    """The measurements as people read them."""
    ceilings = found["ceilings"]
    matrix = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in ceilings["matrix_flop_per_s"].items())
    kernel = Table(
        "operation", "batch", "type", "eager", "of copy", "Triton", "of copy", "times eager",
        title=f"{found['device']}: copies {ceilings['copy_bytes_per_s'] / 1e9:.3g} GB/s, multiplies {matrix} TFLOP/s",
    )  # fmt: skip
    for row in found["kernels"]:
        eager, triton = row["eager"], row.get("triton")
        faster = f"{eager['seconds'] / triton['seconds']:.1f}" if triton else "-"
        kernel.add_row(row["operation"], str(row["batch"]), row["dtype"], *_cell(eager), *_cell(triton), faster)
    made = Table(
        "update", "pictures/s", "times baseline", "NFE/s", "TFLOP/s", "of matrix rate", "memory, GB",
        title=f"{found['backbone']}: {updates.TRAJECTORIES} trajectories of {updates.STEPS} steps, guidance "
        f"{found['guidance']:g}",
    )  # fmt: skip
    baseline = next((r.get("images_per_s") for r in found["updates"] if r["update"] == updates.BASELINE), None)
    for row in found["updates"]:
        if "error" in row:
            made.add_row(row["update"], row["error"], "", "", "", "", "")
            continue
        times = f"{row['images_per_s'] / baseline:.2f}" if baseline else "-"
        made.add_row(
            row["update"], f"{row['images_per_s']:.3g}", times, f"{row['evaluations_per_s']:.4g}",
            f"{row['flop_per_s'] / 1e12:.3g}", f"{row['utilisation']:.0%}",
            f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else "-",
        )  # fmt: skip
    rest = Table("what", "measured", title="besides")
    if found["overhead"]:
        rest.add_row("share of an update outside the model", f"{found['overhead']['share']:.1%}")
    for row in found["scorers"] or []:
        rest.add_row(f"pictures/s of {row['scorer']}", f"{row['images_per_s']:,.0f}")
    for preset, spent in (found["presets"] or {}).items():
        rest.add_row(f"GPU-hours of {preset}, training without decoding and scoring", f"{spent:,.1f}")
    return [kernel, made, rest]


def _cell(timing: dict | None) -> tuple[str, str]:
    return (f"{timing['seconds'] * 1e6:,.0f} us", f"{timing['share_of_bandwidth']:.0%}") if timing else ("-", "-")


def comparison(first: Path, second: Path) -> Table:
    """Every speed of two measurements and the second over the first."""
    a, b = (speeds(read(path)) for path in (first, second))
    table = Table("speed", first.name, second.name, "times")
    for name in [*a, *(n for n in b if n not in a)]:
        one, two = a.get(name), b.get(name)
        shown = [f"{value:.4g}" if value else "-" for value in (one, two)]
        table.add_row(name, *shown, f"{two / one:.2f}" if one and two else "-")
    return table


def speeds(found: dict) -> dict[str, float]:
    """name -> speed (more is better) of a measurement."""
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
            named[f"{found['backbone']} {row['update']}, pictures/s"] = row["images_per_s"]
    for row in found["scorers"] or []:
        named[f"{row['scorer']}, pictures/s"] = row["images_per_s"]
    return named


def read(path: Path) -> dict:
    """A measurement. Raises UsageError for another file."""
    try:
        found = read_record(path)
        speeds(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DamagedError) as error:
        raise UsageError(f"{path} is no measurement of bench perf: {one_line(error)}") from error
    return found
