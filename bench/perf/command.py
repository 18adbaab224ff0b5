"""`bench perf`: measure this machine, or compare two measurement files."""

from pathlib import Path

import torch
from rich.table import Table

from bench.errors import DamagedError, UsageError, one_line
from bench.perf import updates
from bench.perf.carried import carried
from bench.perf.measured import Measurement, check_sections
from bench.printing import terminal
from bench.system.files import json_bytes, read_record
from bench.system.outputs import check_output, write_output


def perf(
    output: Path | None,
    compare: tuple[Path, Path] | None = None,
    only: tuple[str, ...] = (),
    carry: bool = False,
) -> None:
    """Measure this machine, print tables and write the measurements to `output`, row by row.

    If `output` exists, only what it lacks is measured. `compare` prints a comparison of two files instead, and `carry`
    the packages that a bare machine needs. Raises UsageError if a file was not written by `bench perf` or on another
    machine, or `output` cannot be written.
    """
    console = terminal(130)
    if (compare or carry) and (output or only or (compare and carry)):
        raise UsageError(f"{'--compare' if compare else '--carry'} measures nothing: leave out the other options")
    if compare:
        console.print(comparison(*compare))
        return
    if carry:
        for line in carried():
            print(line)
        return
    check_output(output)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_sections(only, device)
    known = read(output) if output and output.is_file() and output.stat().st_size else None
    measurement = Measurement(device, known)
    name = measurement.found["device"]
    console.print(f"measuring {name}: this takes a few minutes and needs an otherwise idle machine")

    def save(found: dict) -> None:
        if output:
            write_output(output, json_bytes(found))

    for table in tables(measurement.measure(only, save, console.print)):
        console.print(table)


def tables(found: dict) -> list[Table]:
    """The measurements as up to three tables: kernels, updates, and everything else."""
    made = [kernel_table(found)] if found["kernels"] else []
    if found["updates"]:
        made.append(update_table(found))
    if found["overhead"] or found["scorers"] or found["presets"]:
        made.append(other_table(found))
    return made


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
    named = {}
    if ceilings := found.get("ceilings"):  # not yet measured if the measurement was interrupted at once
        named["copy, GB/s"] = ceilings["copy_bytes_per_s"] / 1e9
        for dtype, rate in ceilings["matrix_flop_per_s"].items():
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
        tables(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DamagedError) as error:
        raise UsageError(f"{path} is not a measurement file of bench perf --output: {one_line(error)}") from error
    return found
