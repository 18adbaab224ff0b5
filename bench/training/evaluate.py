"""Held-out evaluation: one picture per prompt entry, the same initial noise for every model."""

from collections.abc import Callable
from dataclasses import dataclass
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
from bench.system.workers import ALONE, Workers

Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Per-picture results of one model on one task."""

    task: str
    headline: str
    strata: np.ndarray
    rows: Rows
    """metric (and 'reward') -> float64 [N]."""
    prompts: np.ndarray | None = None
    """Number of each picture's prompt, [N]: pictures of one prompt are one cluster. None: not known."""

    @staticmethod
    def of(task: Task, prompts: list[Prompt], scores: Scores) -> "Evaluation":
        """Of one picture a prompt entry. Raises as `rows_of` does."""
        strata = np.array([prompt.stratum for prompt in prompts])
        same = codes([identity(prompt.stratum, prompt.text, prompt.metadata) for prompt in prompts])
        return Evaluation(task.name, task.headline, strata, rows_of(task, scores), same)

    def estimate(self, metric: str | None = None) -> Estimate:
        """Mean over strata with its interval; the headline unless a metric is named. Failed pictures, and those without
        a value of the metric, do not count; without any in a stratum there is no mean over strata, but NaN."""
        if self.without(metric):
            return Estimate.unknown()
        values, kept = self.rows[metric or self.headline], self._kept(metric)
        return estimate(values[kept], Design(self.strata, self.prompts).kept(kept))

    def parts(self, metric: str | None = None) -> dict[str, np.ndarray]:
        """stratum -> the values that count, in the order of first appearance."""
        values, kept = self.rows[metric or self.headline], self._kept(metric)
        return {name: values[kept & (self.strata == name)] for name in dict.fromkeys(self.strata.tolist())}

    def without(self, metric: str | None = None) -> list[str]:
        """Strata in which no picture has a value."""
        return [name for name, values in self.parts(metric).items() if not len(values)]

    def _kept(self, metric: str | None) -> np.ndarray:
        return ~np.isnan(self.rows[self.headline]) & ~np.isnan(self.rows[metric or self.headline])

    @property
    def missing(self) -> str:
        """What is to be said of strata that no picture has a score in; empty where all have some."""
        none = ", ".join(repr(name) for name in self.without())
        return f"no picture of {none} has a score, so that there is no mean over tags" if none else ""

    @property
    def failed(self) -> int:
        """Pictures that could not be scored: NaN in every row."""
        return int(np.isnan(self.rows[self.headline]).sum())

    def record(self) -> dict:
        """A JSON form that `from_record` reads back exactly."""
        rows = {name: plain(values) for name, values in self.rows.items()}
        known = {} if self.prompts is None else {"prompts": self.prompts.tolist()}
        return {"task": self.task, "headline": self.headline, "strata": self.strata.tolist(), "rows": rows} | known

    @staticmethod
    def from_record(record: dict) -> "Evaluation":
        rows = {name: np.array(values, np.float64) for name, values in record["rows"].items()}
        prompts = np.array(record["prompts"]) if "prompts" in record else None
        return Evaluation(record["task"], record["headline"], np.array(record["strata"]), rows, prompts)


def initial_noise(backbone: FlowBackbone, task: str, split: str, rows: range) -> torch.Tensor:
    """Noise of rows of a split: a function of (task, split, row) alone, so that models and batch sizes compare."""
    seeds = (seed_of("evaluation", task, split, row) for row in rows)
    return torch.cat([backbone.noise(1, torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def sampled(
    backbone: FlowBackbone,
    prompts: list[Prompt],
    noise: torch.Tensor,
    adapter: str | None,
    sampler: Sampler,
    guidance: float,
) -> torch.Tensor:
    """Latents [B, C, h, w] that a deterministic kernel makes of given noise."""
    conditioning = backbone.encode([p.text for p in prompts])
    field = lambda x, sigma: backbone.velocity(x, sigma, conditioning, adapter, guidance)  # noqa: E731
    return rollout(field, noise, sampler, torch.Generator()).final


def pictures(backbone: FlowBackbone, *drawn) -> torch.Tensor:
    """`sampled` and decoded, [B, 3, H, W]."""
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
    """Score one model on a split of one task; `audit` adds the task's independent scorer.

    A picture that is not finite is lost: it has no scores, and is not written.
    Pictures are also written to `folder`, if given, in GenEval's layout, in the place of those of another time. Several
    processes score their shares, and all return the whole. `listener` is told how many of this process's are done.
    `ask` is called before each batch, equally often in all processes; it may raise, to end the evaluation. Raises
    BenchError if no picture can be scored or the scorer lacks the task's headline.
    """
    prompts = task.prompts(split)
    at = places(prompts) if folder else []
    if folder:
        if workers.main:
            begin(folder, task.name, task.world)
        workers.agreed(None)  # nobody writes before the folder is ready
    found = Collected()
    mine = workers.shard(len(prompts))
    for start in range(mine.start, mine.start + workers.most(len(prompts)), batch):
        ask()
        if start >= mine.stop:
            continue  # another process has a batch more
        stop = min(start + batch, mine.stop)
        noise = initial_noise(backbone, task.name, split, range(start, stop))
        latents = sampled(backbone, prompts[start:stop], noise, adapter, sampler, guidance)
        for rows in parts_of(latents):
            images = backbone.decode(latents[rows])
            here = slice(start + rows.start, start + rows.start + len(images))
            fine = finite(latents[rows], images)
            if folder:
                kept = np.flatnonzero(fine) + here.start
                write(folder, [prompts[i] for i in kept], images[np.flatnonzero(fine)], [at[i] for i in kept])
            with backbone.meter.purpose("held-out scoring"):
                score = partial(_scores, task, audit)
                found.add(len(images), partial(score_finite, fine, images, prompts[here], score))
            listener(here.stop - mine.start, len(mine))
    return _evaluation(task, prompts, workers.gather(found.whole()))


def _scores(task: Task, audit: bool, images: torch.Tensor, prompts: list[Prompt]) -> Scores:
    scores = score_each(task, images, prompts)
    return Scores(scores.rewards, scores.metrics | (task.audit(images, prompts) if audit else {}))


def _evaluation(task: Task, prompts: list[Prompt], shares: list[Scores | None]) -> Evaluation:
    """Of all processes' scores; None is the share of one that had no prompt."""
    whole = stacked([share for share in shares if share])
    return Evaluation.of(task, prompts, whole)
