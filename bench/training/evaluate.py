"""Held-out evaluation: one image per prompt entry, from the same initial noise for every model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.analysis.stats import Design, Estimate, codes, estimate
from bench.api.scores import Collected, finite, parts_of, rows_of, score_each, score_finite, stacked
from bench.api.task import Prompt, Scores, Task
from bench.backbones.flow import FlowBackbone
from bench.hashing import seed_of
from bench.sampler.rollout import Sampler, rollout
from bench.scoring.folders import begin, identity, places, write
from bench.scoring.remote import plain
from bench.system.background import Background
from bench.system.workers import ALONE, Workers

Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on one task, image by image."""

    task: str
    headline: str
    strata: np.ndarray
    rows: Rows
    """metric (including 'reward') -> float64 [N], NaN where an image has no value."""
    prompts: np.ndarray | None = None
    """Index of each image's prompt, [N]; images of one prompt form a cluster. None in older records."""

    @staticmethod
    def of(task: Task, prompts: list[Prompt], scores: Scores) -> "Evaluation":
        """The evaluation of images that were drawn from `prompts`, one per entry. Raises as `rows_of` does."""
        strata = np.array([prompt.stratum for prompt in prompts])
        identities = [identity(prompt.stratum, prompt.text, prompt.metadata) for prompt in prompts]
        rows = rows_of(task, scores)
        return Evaluation(task.name, task.headline, strata, rows, codes(identities))

    def estimate(self, metric: str | None = None) -> Estimate:
        """Mean over strata with its interval, of the headline metric unless another is named.

        Images that failed or lack the metric are left out. NaN if a stratum has none left: the mean is over strata.
        """
        if self.without(metric):
            return Estimate.unknown()
        values, kept = self.rows[metric or self.headline], self._kept(metric)
        return estimate(values[kept], Design(self.strata, self.prompts).kept(kept))

    def parts(self, metric: str | None = None) -> dict[str, np.ndarray]:
        """stratum -> its values without missing ones, strata in the order of their first appearance."""
        values, kept = self.rows[metric or self.headline], self._kept(metric)
        strata = dict.fromkeys(self.strata.tolist())
        return {name: values[kept & (self.strata == name)] for name in strata}

    def without(self, metric: str | None = None) -> list[str]:
        """Strata in which no image has a value."""
        return [name for name, values in self.parts(metric).items() if not len(values)]

    def _kept(self, metric: str | None) -> np.ndarray:
        scored = ~np.isnan(self.rows[self.headline])
        return scored & ~np.isnan(self.rows[metric or self.headline])

    @property
    def missing(self) -> str:
        """A message naming the strata in which no image has a score; empty if there are none."""
        none = ", ".join(repr(name) for name in self.without())
        return f"no image of {none} has a score, so the mean over tags is undefined" if none else ""

    @property
    def failed(self) -> int:
        """Number of images that could not be scored: these are NaN in every row."""
        return int(np.isnan(self.rows[self.headline]).sum())

    def record(self) -> dict:
        """A JSON form that `from_record` reads back exactly."""
        found = {
            "task": self.task,
            "headline": self.headline,
            "strata": self.strata.tolist(),
            "rows": {name: plain(values) for name, values in self.rows.items()},
        }
        if self.prompts is not None:
            found["prompts"] = self.prompts.tolist()
        return found

    @staticmethod
    def from_record(record: dict) -> "Evaluation":
        """Read what `record` wrote, or an older record without prompts."""
        rows = {name: np.array(values, np.float64) for name, values in record["rows"].items()}
        prompts = np.array(record["prompts"]) if "prompts" in record else None
        strata = np.array(record["strata"])
        return Evaluation(record["task"], record["headline"], strata, rows, prompts)


def initial_noise(backbone: FlowBackbone, task: str, split: str, rows: Sequence[int]) -> torch.Tensor:
    """Noise of the given rows of a split, [len(rows), C, h, w].

    It depends on (task, split, row) only, so that models can be compared and the batch size does not matter. It is
    torch's on the CPU and must stay so: stored evaluations are compared with new ones image by image.
    """
    noises = []
    for row in rows:
        generator = torch.Generator().manual_seed(seed_of("evaluation", task, split, row))
        noises.append(torch.randn(backbone.latent_shape, generator=generator))
    return torch.stack(noises).to(backbone.device)


@torch.no_grad()
def sampled(
    backbone: FlowBackbone,
    prompts: list[Prompt],
    noise: torch.Tensor,
    adapter: str | None,
    sampler: Sampler,
    guidance: float,
    ahead: Sequence[Prompt] = (),
) -> torch.Tensor:
    """Latents [B, C, h, w] that a deterministic kernel produces from `noise` (same shape).

    `ahead` are the prompts of the next batches (see FlowBackbone.encode).
    """
    conditioning = backbone.encode([p.text for p in prompts], (p.text for p in ahead))

    def field(x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        return backbone.velocity(x, sigma, conditioning, adapter, guidance)

    return rollout(field, noise, sampler, torch.Generator()).final


def pictures(backbone: FlowBackbone, *drawn) -> torch.Tensor:
    """Decoded images [B, 3, H, W] in [0, 1]; arguments as for `sampled`."""
    return backbone.decode(sampled(backbone, *drawn))


def evaluate(
    backbone: FlowBackbone,
    task: Task,
    adapter: str | None,
    sampler: Sampler,
    guidance: float,
    split: str = "test",
    batch: int = 96,
    audit: bool = False,
    folder: Path | None = None,
    workers: Workers = ALONE,
    listener: Callable[[int, int], None] = lambda done, of: None,
    ask: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Score one model on a split of one task; `audit` adds the metrics of the task's independent scorer.

    An image that is not finite counts as failed: it has no scores and is not written.

    With `folder`, images are also written there in GenEval's layout; those of an earlier evaluation are deleted.
    Several processes score their shards, and each returns the complete evaluation. `listener` receives how many images
    of this process are done, and how many it has. `ask` is called before each batch, equally often in all processes; it
    may raise to abort the evaluation.

    Raises BenchError if no image can be scored or the scorer does not give the task's headline metric.
    """
    prompts = task.prompts(split)
    at = places(prompts) if folder else []
    if folder:
        if workers.main:
            begin(folder, task.name, task.world)
        workers.agreed(None)  # a barrier: no process may write before the folder has been emptied
    found = Collected()
    # A scorer that works elsewhere has one part of the images while the next one is drawn. Audits may need the device.
    ahead = task.elsewhere and not audit
    pending: Callable[[], None] | None = None
    mine = workers.shard(len(prompts))

    def add(here: slice, score: Callable[[], Scores]) -> None:
        with backbone.meter.purpose("held-out scoring"):
            found.add(here.stop - here.start, score)
        listener(here.stop - mine.start, len(mine))

    # Every process loops as often as the one with the largest shard, because `ask` communicates between processes.
    last = mine.start + workers.most(len(prompts))
    for start in range(mine.start, last, batch):
        ask()
        stop = min(start + batch, mine.stop)
        rows = list(range(start, stop))
        if backbone.sharded:
            # All processes must make the same passes. One whose shard is shorter draws its last image once more.
            rows += [max(0, mine.stop - 1)] * (min(start + batch, last) - max(start, stop))
        if not rows:
            continue
        noise = initial_noise(backbone, task.name, split, rows)
        here, later = [prompts[row] for row in rows], prompts[stop : mine.stop]
        latents = sampled(backbone, here, noise, adapter, sampler, guidance, later)
        latents = latents[: max(0, stop - start)]
        for part in parts_of(latents):
            images = backbone.decode(latents[part])
            first = start + part.start
            scored = slice(first, first + len(images))
            fine = finite(latents[part], images)
            if folder:
                good = np.flatnonzero(fine)
                entries = good + scored.start
                kept = [prompts[i] for i in entries]
                write(folder, kept, images[good], [at[i] for i in entries])
            images = images.cpu() if ahead else images
            score = partial(score_finite, fine, images, prompts[scored], partial(_scores, task, audit))
            if pending:
                pending()
            if ahead:
                pending = partial(add, scored, partial(_only, Background([score])))
            else:
                add(scored, score)
    if pending:
        pending()
    return _evaluation(task, prompts, workers.gather(found.whole()))


def _only(work: Background[Scores]) -> Scores:
    (scores,) = work.results()
    return scores


def _scores(task: Task, audit: bool, images: torch.Tensor, prompts: list[Prompt]) -> Scores:
    scores = score_each(task, images, prompts)
    audited = task.audit(images, prompts) if audit else {}
    return replace(scores, metrics=scores.metrics | audited, details=[])


def _evaluation(task: Task, prompts: list[Prompt], shards: list[Scores | None]) -> Evaluation:
    """The evaluation of all processes' scores; None is the shard of a process that had no prompt."""
    whole = stacked([shard for shard in shards if shard])
    return Evaluation.of(task, prompts, whole)
