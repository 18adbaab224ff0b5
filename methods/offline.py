"""The shared part of methods that train on the user's own images: folders, checks, draws without replacement, cost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bench.api.lab import Lab
from bench.api.method import Work
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.config.bounds import Count
from bench.errors import UsageError, unknown
from bench.lazy import torch
from bench.sampler.draws import draw, normal
from methods.combining import CombiningMethod, CombiningOptions
from methods.held_out_prompts import held_out_prompts, plain
from methods.picture_folder import METADATA, DataRow, folder_hash, load_picture, read_folder

if TYPE_CHECKING:
    from torch import Tensor


LATENTS = 4 * 2**30
"""Bytes of latents that a process keeps: 16,384 images of SD3.5 at 512 pixels. Others are encoded whenever drawn."""


class OfflineOptions(CombiningOptions):
    """Settings of all methods that train on the user's own images."""

    data: dict[str, str] = Field(default={})
    """task -> folder with metadata.jsonl and images (methods/picture_folder.py); every task of the run needs one."""
    batch: Count = 24
    """Rows of metadata.jsonl per task and update."""
    chunk: Count = 24
    """Rows per forward pass with gradients; it bounds memory."""


@dataclass
class OfflineBatch:
    """This process's B rows in one update: latents [B, C, h, w] per column, and their captions."""

    latents: tuple[Tensor, ...]
    conditioning: Conditioning


class OfflineMethod(CombiningMethod):
    """Checks, data, noise and cost shared by the methods that train on the user's own images.

    Training is without guidance, as the models themselves were trained: sampler.guidance is that of the evaluation.
    Images are read and encoded when they are first drawn. On SD3.5-Medium at 512 pixels an encoding takes a quarter of
    the operations of a training pass, so latents are kept in host memory, up to LATENTS bytes per process.
    """

    in_all = False  # it needs a folder per task
    lowers_memory: ClassVar[tuple[str, ...]] = ("chunk", "batch")
    Options: ClassVar[type[OfflineOptions]]
    columns: ClassVar[tuple[str, ...]]
    """The keys of metadata.jsonl that name a row's images."""

    def __init__(self, options: OfflineOptions):
        super().__init__(options)
        self._rows: dict[str, list[DataRow]] = {}
        self._latents: dict[Path, Tensor] = {}

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse tasks without a folder, unusable folders, and captions that are held-out prompts."""
        super().check(spec, sampler)
        data = cls.Options.model_validate(spec.params).data
        for task in data:
            if task not in spec.tasks:
                raise unknown("task in params.data", task, spec.tasks)
        for task in spec.tasks:
            if task not in data:
                raise UsageError(
                    f"method {cls.name!r} has no images for task {task!r}: set params.data.{task} to a folder with "
                    f"{METADATA}"
                )
        held_out = held_out_prompts(spec)
        for task in spec.tasks:
            for row in read_folder(Path(data[task]), cls.columns):
                if other := held_out.get(plain(row.caption)):
                    raise UsageError(
                        f"{row.where}: its caption is a held-out prompt of task {other!r}, whose scores would no "
                        "longer be held out: remove the row"
                    )

    @classmethod
    def inputs(cls, spec) -> dict[str, str]:
        """task -> content hash of its folder."""
        data = {task: Path(spec.params["data"][task]) for task in spec.tasks}
        return {task: folder_hash(folder, read_folder(folder, cls.columns)) for task, folder in data.items()}

    @classmethod
    def row_work(cls, spec, reference: int) -> Work:
        """The work of one update: per image one pass with gradients and `reference` passes without."""
        options, each = cls.Options.model_validate(spec.params), len(cls.columns)
        rows = options.batch * len(spec.tasks)
        at_once = each * min(options.batch, options.chunk)
        return Work(
            Passes(reference * each * rows, each * rows),
            drawn=reference * at_once,
            trained_at_once=at_once,
            kept=each * rows,
            prompts=rows,
            guided=False,
        )

    def collect(self, lab: Lab, task: str) -> OfflineBatch:
        """Draw this process's rows, and encode their images and captions."""
        if task not in self._rows:
            self._rows[task] = read_folder(Path(self.options.data[task]), self.columns)
        mine = lab.shard_rows(task, self.options.batch)
        rows = self._drawn(lab, task, lab.step, mine)
        latents = []
        for column in range(len(self.columns)):
            of_column = torch.stack([self._latent(lab, row, column) for row in rows])
            latents.append(of_column.to(lab.backbone.device))
        later = (row.caption for step in count(lab.step + 1) for row in self._drawn(lab, task, step, mine))
        return OfflineBatch(tuple(latents), lab.backbone.encode([row.caption for row in rows], later))

    def _latent(self, lab: Lab, row: DataRow, column: int) -> Tensor:
        """The latent [C, h, w] of an image of a row, on the CPU.

        Encoded alone: in a batch its last bits would depend on the others, which differ in a resumed run.
        """
        picture = row.pictures[column]
        if picture in self._latents:
            return self._latents[picture]
        pixels = load_picture(row, column, lab.backbone.picture_size).to(lab.backbone.device)
        latent = lab.backbone.encode_pictures(pixels[None])[0].cpu()
        if (len(self._latents) + 1) * latent.nbytes <= LATENTS:
            self._latents[picture] = latent
        return latent

    def _drawn(self, lab: Lab, task: str, step: int, mine: range) -> list[DataRow]:
        """The rows at positions `mine` of an update's batch.

        Every epoch has its own random order of all rows, and batches follow each other through the epochs.
        """
        rows = self._rows[task]
        epochs = [divmod(step * self.options.batch + place, len(rows)) for place in mine]
        orders = {
            # The purpose that probes count among the draws of states: theirs are other rows than training's.
            epoch: np.random.default_rng(lab.seed_for("prompts", task, epoch)).permutation(len(rows))
            for epoch in {epoch for epoch, _ in epochs}
        }
        return [rows[orders[epoch][place]] for epoch, place in epochs]


def noised(lab: Lab, task: str, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels [B], one per row, and standard normal noise like `latents` [B, C, h, w].

    Levels are drawn uniformly from the sampler's schedule, as in sft; sampler.steps is their number.
    """
    generator = lab.generator("levels", task)
    sigmas = torch.tensor(lab.sampler.schedule.sigmas[:-1], dtype=torch.float32)

    def indices(rows: int) -> Tensor:
        return torch.randint(len(sigmas), (rows,), generator=generator)

    sigma = sigmas[draw(indices, len(latents), generator)].to(latents.device)
    return sigma, normal(latents.shape, generator, latents.device)
