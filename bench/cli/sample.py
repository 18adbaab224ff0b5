"""`bench sample`: draw images from a user's own prompts, with an adapter or the base."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.api.scores import finite, parts_of
from bench.api.task import Prompt
from bench.backbones.flow import FlowBackbone
from bench.cli.evaluate import KEPT
from bench.config.descriptor import Descriptor
from bench.config.resolve import describe
from bench.config.scorers import view_settings
from bench.config.spec import EvaluationSpec
from bench.errors import BenchError, DamagedError, UsageError, one_line
from bench.hashing import seed_of
from bench.printing import progress_bar
from bench.sampler.rollout import Sampler, euler
from bench.scoring.folders import begin, places, write
from bench.system.devices import best_device
from bench.system.files import read_lines
from bench.system.outputs import check_folder
from bench.system.workers import refuse_several
from bench.training.evaluate import sampled
from bench.training.execute import load_backbone
from bench.training.out_of_memory import memory_of
from bench.weights.hub import adapter_folder


@dataclass(frozen=True)
class Sampling:
    """What to draw, and how."""

    adapter: str
    """'base', or a folder or hub address of an adapter or a model."""
    backbone: str
    texts: list[str]
    """The prompts."""
    each: int
    """Images per prompt."""
    guidance: float | None
    """Guidance scale; None for the model's own."""
    steps: int
    seed: int
    overrides: list[str]
    """Settings of compute and sampler."""


def draw(asked: Sampling, output: Path) -> None:
    """Write the images to `output`, in GenEval's layout, and print the folder.

    The noise of an image follows from the seed, its prompt's text and its number among that prompt's, so that other
    prompts, the batch size and the adapter do not matter. Raises UsageError for settings and folders that cannot be
    used, before anything is loaded, and BenchError at the end if some images are not finite.
    """
    refuse_several("sample")
    if not asked.texts:
        raise UsageError("no prompt is given: name prompts, or a file of them with --prompts")
    descriptor = describe(asked.backbone)
    view = view_settings(
        asked.overrides, (), ("compute", "sampler"), descriptor.world, descriptor.defaults().get("compute", {})
    )
    descriptor.check(view.compute)
    guidance = own_guidance(descriptor) if asked.guidance is None else asked.guidance
    if view.compute.negative_prompt and guidance == 1:
        raise UsageError("compute.negative_prompt has no effect at guidance scale 1: set --guidance as well")
    levels = descriptor.levels_at(view.compute)
    sampler = euler(levels, asked.steps, view.sampler.table, view.sampler.shift, descriptor.embedded_guidance)
    check_folder(output)
    device = best_device()
    batch = view.compute.batch or EvaluationSpec().batch
    prompts = [Prompt(text) for text in dict.fromkeys(asked.texts) for _ in range(asked.each)]
    backbone = load_backbone(asked.backbone, device, view.compute, KEPT)
    if asked.adapter != "base":
        backbone.adapters.load("drawn", adapter_folder(asked.adapter))
    for start in range(0, len(prompts), batch):  # a prompt that the model cannot take is an error before any image
        backbone.encode([p.text for p in prompts[start : start + batch]])
    begin(output, "sample", descriptor.world)
    columns = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with progress_bar(*columns) as shown, memory_of(view.compute, batch, device, asked.backbone):
        bar = shown.add_task("images", total=len(prompts))
        name = None if asked.adapter == "base" else "drawn"
        lost = _draw(backbone, prompts, asked.seed, name, sampler, guidance, batch, output, partial(shown.advance, bar))
    print(output)
    if lost:
        raise BenchError(f"{lost} of {len(prompts)} images are not finite and were not written")


def _draw(
    backbone: FlowBackbone, prompts: list[Prompt], seed: int, adapter: str | None, sampler: Sampler, guidance: float,
    batch: int, output: Path, advance: Callable[[int], None],
) -> int:  # fmt: skip
    """Draw and write all images; returns how many are not finite, which are left out."""
    at, lost = places(prompts), 0
    for start in range(0, len(prompts), batch):
        stop = start + batch
        here, later = prompts[start:stop], prompts[stop:]
        noise = torch.stack([noise_of(backbone, seed, p.text, k) for p, (_, k) in zip(here, at[start:stop])])
        latents = sampled(backbone, here, noise.to(backbone.device), adapter, sampler, guidance, later)
        for part in parts_of(latents):
            images = backbone.decode(latents[part])
            good = np.flatnonzero(finite(latents[part], images))
            lost += len(images) - len(good)
            rows = good + start + part.start
            write(output, [prompts[row] for row in rows], images[good], [at[row] for row in rows])
            advance(len(images))
    return lost


def noise_of(backbone: FlowBackbone, seed: int, text: str, number: int) -> torch.Tensor:
    """Initial noise [C, h, w] of a prompt's image: torch's on the CPU, the same on every device."""
    generator = torch.Generator().manual_seed(seed_of("sample", seed, text, number))
    return torch.randn(backbone.latent_shape, generator=generator)


def own_guidance(descriptor: Descriptor) -> float:
    """The guidance scale at which a model is sampled where none is set."""
    return float(descriptor.defaults().get("sampler", {}).get("guidance", 1.0))


def prompts_in(file: str) -> list[str]:
    """The lines of a file of prompts, or of the standard input for '-', without empty ones.

    Raises UsageError for a file that cannot be read.
    """
    try:
        lines = sys.stdin.read().splitlines() if file == "-" else read_lines(Path(file))
    except (OSError, DamagedError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read prompts from {file}: {one_line(error)}") from error
    return [line.strip() for line in lines if line.strip()]
