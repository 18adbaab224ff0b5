"""Held-out evaluation: one image per prompt entry, from the same initial noise for every model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.analysis.metric_names import is_measure
from bench.analysis.stats import Design, Estimate, codes, estimate
from bench.api.features import FeatureSpace
from bench.api.scores import Collected, finite, parts_of, rows_of, score_each, score_finite, stacked
from bench.api.task import Prompt, Scores, Task
from bench.backbones.conditioning import Conditioning
from bench.backbones.flow import FlowBackbone
from bench.hashing import seed_of
from bench.sampler.rollout import Sampler, rollout
from bench.scoring.folders import begin, identity, places, write
from bench.scoring.remote import plain
from bench.system.background import Background
from bench.system.workers import ALONE, Workers
from bench.training.measures import MEASURES, Entry, Followed, Measures

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
        strata, clusters = design_of(prompts)
        return Evaluation(task.name, task.headline, strata, rows_of(task, scores), clusters)

    def estimate(self, metric: str | None = None) -> Estimate:
        """Mean over strata with its interval, of the headline metric unless another is named.

        Images that failed or lack the metric are left out. NaN if a stratum has none left: the mean is over strata.
        Only measures are averaged over the strata that have them, since prompts may decide an attribute.
        """
        if self.without() or (not (metric is None or is_measure(metric)) and self.without(metric)):
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


def design_of(prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
    """Stratum and number of the prompt of each entry of a split, each [N]."""
    identities = [identity(prompt.stratum, prompt.text, prompt.metadata) for prompt in prompts]
    return np.array([prompt.stratum for prompt in prompts]), codes(identities)


def initial_noise(backbone: FlowBackbone, task: str, split: str, entries: Iterable[Entry]) -> torch.Tensor:
    """Noise of the given entries of a split, [len(entries), C, h, w].

    It depends on (task, split, entry) only, so that models can be compared and the batch size does not matter. It is
    torch's on the CPU and must stay so: stored evaluations are compared with new ones image by image.
    """
    noises = []
    for row, again in entries:
        further = (again,) if again else ()
        generator = torch.Generator().manual_seed(seed_of("evaluation", task, split, row, *further))
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
    see: Callable[[torch.Tensor, float, torch.Tensor, Conditioning], None] | None = None,
) -> torch.Tensor:
    """Latents [B, C, h, w] that a deterministic kernel produces from `noise` (same shape).

    `ahead` are the prompts of the next batches (see FlowBackbone.encode). `see` is called with the state, sigma, the
    velocity and the encoded prompts of every step.
    """
    conditioning = backbone.encode([p.text for p in prompts], (p.text for p in ahead))

    def field(x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        velocity = backbone.velocity(x, sigma, conditioning, adapter, guidance)
        if see:
            see(x, float(sigma), velocity, conditioning)
        return velocity

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
    space: FeatureSpace | None = None,
) -> Evaluation:
    """Score one model on a split of one task; `audit` adds the metrics of the task's independent scorer.

    The evaluation also has measures beside the scores (bench/training/measures.py): the distance of an adapter from the
    base, and with `space` the diversity of the images.

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
    strata, clusters = design_of(prompts)
    measures = Measures(prompts, strata, clusters, space)
    # A scorer that works elsewhere has one part of the images while the next one is drawn. Audits may need the device.
    ahead = task.elsewhere and not audit
    pending: Callable[[], None] | None = None
    mine = workers.shard(len(prompts))

    def add(here: slice, score: Callable[[], Scores]) -> None:
        with backbone.meter.purpose("held-out scoring"):
            found.add(here.stop - here.start, score)
        listener(here.stop - mine.start, len(mine))

    followed = Followed(backbone, sampler, guidance, batch, measures.chosen if adapter else [])

    def draw(entries: list[Entry], *how) -> torch.Tensor:
        noise = initial_noise(backbone, task.name, split, entries)
        here = [prompts[row] for row, _ in entries]
        return sampled(backbone, here, noise, adapter, sampler, guidance, *how)

    for start, stop, rows in _batches(len(prompts), batch, workers, backbone.sharded):
        ask()
        if not rows:
            continue
        latents = draw(
            [Entry(row) for row in rows], prompts[stop : mine.stop], partial(followed.see, range(start, stop))
        )
        latents = latents[: max(0, stop - start)]
        for part in parts_of(latents):
            images = backbone.decode(latents[part])
            first = start + part.start
            scored = slice(first, first + len(images))
            fine = finite(latents[part], images)
            with backbone.meter.purpose(MEASURES):
                measures.add([Entry(row) for row in range(first, scored.stop)], images, fine)
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
    further = measures.further
    for start, stop, rows in _batches(len(further), batch, workers, backbone.sharded):
        ask()
        if not rows:
            continue
        with backbone.meter.purpose(MEASURES):
            latents = draw([further[row] for row in rows])[: max(0, stop - start)]
            for part in parts_of(latents):
                images = backbone.decode(latents[part])
                entries = further[start + part.start : start + part.start + len(images)]
                measures.add(entries, images, finite(latents[part], images))
    measures.drifts = followed.drifts(workers)
    shards = [shard for shard in workers.gather(found.whole()) if shard]  # None: a process that had no prompt
    result = Evaluation.of(task, prompts, stacked(shards))
    return replace(result, rows=result.rows | measures.rows(workers))


def _batches(total: int, batch: int, workers: Workers, equal: bool) -> Iterator[tuple[int, int, list[int]]]:
    """Batches of this process's shard of `total` images: (start, end, images to draw).

    Every process has as many batches as the one with the largest shard, because processes communicate between batches;
    some may be empty. With `equal`, all draw equally many images, as sharded weights need: a process whose shard is
    shorter draws its last image once more, beyond the end.
    """
    mine = workers.shard(total)
    last = mine.start + workers.most(total)
    for start in range(mine.start, last, batch):
        stop = min(start + batch, mine.stop)
        rows = list(range(start, stop))
        if equal:
            rows += [max(0, mine.stop - 1)] * (min(start + batch, last) - max(start, stop))
        yield start, stop, rows


def _only(work: Background[Scores]) -> Scores:
    (scores,) = work.results()
    return scores


def _scores(task: Task, audit: bool, images: torch.Tensor, prompts: list[Prompt]) -> Scores:
    scores = score_each(task, images, prompts)
    audited = task.audit(images, prompts) if audit else {}
    return replace(scores, metrics=scores.metrics | audited, details=[])
