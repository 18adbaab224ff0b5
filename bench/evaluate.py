"""Held-out evaluation: one picture per prompt entry, the same initial noise for every model."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from bench.backbones.flow import FlowBackbone
from bench.hashing import seed_of
from bench.layout import places, write
from bench.remote import plain
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.schedule import make_schedule
from bench.sampler.transitions import KERNELS
from bench.scoring import score_each
from bench.stats import Design, Estimate, codes, estimate
from bench.task import Prompt, Task
from bench.workers import ALONE, Workers

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

    def estimate(self, metric: str | None = None) -> Estimate:
        """Mean over strata with its interval; the headline unless a metric is named. Failed pictures do not count."""
        kept = ~np.isnan(self.rows[self.headline])
        return estimate(self.rows[metric or self.headline][kept], Design(self.strata, self.prompts).kept(kept))

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


def euler(steps: int, shift: float) -> Sampler:
    """The sampler of every evaluation: deterministic Euler on the backbone's schedule."""
    return Sampler(make_schedule(steps, shift), KERNELS["ode"])


def initial_noise(backbone: FlowBackbone, task: str, split: str, rows: range) -> torch.Tensor:
    """Noise of rows of a split: a function of (task, split, row) alone, so that models and batch sizes compare."""
    seeds = (seed_of("evaluation", task, split, row) for row in rows)
    return torch.cat([backbone.noise(1, torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def pictures(
    backbone: FlowBackbone,
    prompts: list[Prompt],
    noise: torch.Tensor,
    adapter: str | None,
    sampler: Sampler,
    guidance: float,
) -> torch.Tensor:
    """Sample and decode [B, 3, H, W] from given noise with a deterministic kernel."""
    conditioning = backbone.encode([p.text for p in prompts])
    field = lambda x, sigma: backbone.velocity(x, sigma, conditioning, adapter, guidance)  # noqa: E731
    return backbone.decode(rollout(field, noise, sampler, torch.Generator()).final)


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
) -> Evaluation:
    """Score one model on a split of one task; `audit` adds the task's independent scorer.

    Pictures are also written to `folder`, if given, in GenEval's layout. Several processes score their shares, and all
    return the whole.
    """
    prompts = task.prompts(split)
    at = places(prompts) if folder else []
    rewards, metrics = [], []
    mine = workers.share(len(prompts))
    for start in range(mine.start, mine.stop, batch):
        stop = min(start + batch, mine.stop)
        chunk = prompts[start:stop]
        noise = initial_noise(backbone, task.name, split, range(start, stop))
        images = pictures(backbone, chunk, noise, adapter, sampler, guidance)
        if folder:
            write(folder, chunk, images, at[start:stop])
        with backbone.meter.purpose("held-out scoring"):
            scores = score_each(task, images, chunk)
            rewards.append(scores.rewards)
            metrics.append(scores.metrics | (task.audit(images, chunk) if audit else {}))
    rewards, metrics = (list(chain(*parts)) for parts in zip(*workers.gather((rewards, metrics))))
    rows = {"reward": np.concatenate(rewards)} | {m: np.concatenate([x[m] for x in metrics]) for m in metrics[0]}
    strata, texts = np.array([p.stratum for p in prompts]), codes([p.text for p in prompts])
    return Evaluation(task.name, task.headline, strata, rows, texts)
