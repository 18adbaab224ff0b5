"""Measures of an evaluated model beside its scores: diversity of its images, and its distance from the base.

They are rows of an evaluation, like a scorer's metrics. Those that need further images or passes are measured on a few
prompts, and NaN for all other images.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.analysis.diversity import DECIMALS, IMAGES, PROMPTS, over_prompts, surprisal, within_prompt
from bench.analysis.metric_names import DIVERSITY, DRIFT, ENTROPY, OVER_PROMPTS
from bench.api.features import FeatureSpace
from bench.api.task import Prompt
from bench.backbones.conditioning import Conditioning
from bench.backbones.flow import FlowBackbone
from bench.sampler.rollout import Sampler
from bench.system.workers import Workers

VERSION = "1"
"""Must change whenever a measure of the same model could change."""
MEASURES = "measures"
"""The purpose to which the meter charges their passes and time."""


class Entry(NamedTuple):
    """An image to draw: an entry of the split, and the number of its initial noise (0 is the evaluation's own)."""

    row: int
    again: int = 0


class Followed:
    """Follows some images along their sampling paths, to compare the model's velocity with the base's there."""

    def __init__(self, backbone: FlowBackbone, sampler: Sampler, guidance: float, batch: int, rows: Iterable[int]):
        """`rows` are the entries of the split to follow; `batch` is the size of the base's passes.

        The base has the same guidance scale.
        """
        self.backbone, self.guidance, self.batch, self.rows = backbone, guidance, batch, set(rows)
        self._weights = steps_by_sigma(sampler)
        self._prompts: dict[int, Conditioning] = {}
        self._seen: list[tuple[int, float, Tensor, Tensor]] = []
        """Entry, sigma, and there the latent and the model's velocity, each [C, h, w], not yet compared."""
        self._drifts: dict[int, float] = {}

    def see(self, rows: range, x: Tensor, sigma: float, velocity: Tensor, conditioning: Conditioning) -> None:
        """Take one step of a batch that begins with the entries `rows`."""
        for row in sorted(self.rows.intersection(rows)):
            at = row - rows.start
            self._prompts[row] = conditioning[[at]]
            self._seen.append((row, sigma, x[at].clone(), velocity[at].clone()))  # views would keep the whole batch
        # Several noise levels share a pass. With sharded weights, all processes pass together at the end.
        if len(self._seen) >= self.batch and not self.backbone.sharded:
            self._compare(0)

    @torch.no_grad()
    def _compare(self, missing: int) -> None:
        """Add the states seen so far, in one pass of the base with `missing` more that have no meaning."""
        seen, self._seen = self._seen[: self.batch], self._seen[self.batch :]
        prompts = [self._prompts[row] for row, *_ in seen]
        x, sigma = [state for _, _, state, _ in seen], [level for _, level, *_ in seen]
        if missing:
            x += [*self.backbone.noise(1, torch.Generator().manual_seed(0))] * missing
            sigma += [1.0] * missing
            prompts += [self.backbone.encode([""])] * missing
        levels = torch.tensor(sigma, device=x[0].device)
        with self.backbone.meter.purpose(MEASURES):
            base = self.backbone.velocity(torch.stack(x), levels, Conditioning.cat(prompts), None, self.guidance)
        if not seen:
            return
        velocities = torch.stack([velocity for *_, velocity in seen]).float()
        gaps = (velocities - base[: len(seen)].float()).square().flatten(1).mean(1).tolist()
        for (row, level, *_), gap in zip(seen, gaps):
            self._drifts[row] = self._drifts.get(row, 0.0) + self._weights[level] * gap

    def drifts(self, workers: Workers) -> dict[int, float]:
        """Entry -> mean over the path, weighted by the steps' lengths, of |v - v_base|^2 per dimension.

        With sharded weights, all processes make equally large passes, as many as the one that followed most.
        """
        most = max(workers.gather(len(self._seen))) if self.backbone.sharded else len(self._seen)
        for start in range(0, most, self.batch):
            together = min(self.batch, most - start)
            self._compare(max(0, together - len(self._seen)) if self.backbone.sharded else 0)
        return self._drifts


def steps_by_sigma(sampler: Sampler) -> dict[float, float]:
    """sigma -> length of the step that begins there, as a fraction of the whole path."""
    schedule = sampler.schedule
    lengths = [schedule.h(k) for k in range(schedule.steps)]
    return {schedule.sigmas[k]: length / sum(lengths) for k, length in enumerate(lengths)}


class Measures:
    """Collects what one evaluation of a model measures beside scores; every process collects its own images."""

    def __init__(self, prompts: list[Prompt], strata: np.ndarray, clusters: np.ndarray, space: FeatureSpace | None):
        """`strata` and `clusters` [N] are the design of the evaluation; `space` None leaves the diversity out."""
        self.prompts, self.strata, self.clusters, self.space = prompts, strata, clusters, space
        self.chosen = chosen(strata, clusters)
        """Entries of the split on which the measures are taken that need further passes."""
        self.drifts: dict[int, float] = {}
        """Entry -> distance from the base."""
        self._features: dict[Entry, np.ndarray] = {}
        self._labels: dict[str, dict[int, str]] = {}

    @property
    def further(self) -> list[Entry]:
        """The further images to draw."""
        if self.space is None:
            return []
        return [Entry(row, again) for row in self.chosen for again in range(1, IMAGES)]

    def add(self, entries: Sequence[Entry], images_BCHW: Tensor, fine_B: np.ndarray) -> None:
        """Take the features of images, and the attributes of the evaluation's own, except where `fine_B` is false."""
        good = np.flatnonzero(fine_B)
        if self.space is None or not len(good):
            return
        images, entries = images_BCHW[good], [entries[i] for i in good.tolist()]
        features = self.space.features(images).float().cpu().numpy()
        self._features |= dict(zip(entries, features))
        if any(again for _, again in entries):
            return
        for name, labels in self.space.attributes(images, [self.prompts[row] for row, _ in entries]).items():
            self._labels.setdefault(name, {}).update(zip((row for row, _ in entries), labels.tolist()))

    def rows(self, workers: Workers) -> dict[str, np.ndarray]:
        """The measures of all processes: name -> float64 [N]. A measure that no image has is left out."""
        found: dict[str, np.ndarray] = {}
        drifts: dict[int, float] = {}
        features: dict[Entry, np.ndarray] = {}
        labels: dict[str, dict[int, str]] = {}
        for their_drifts, their_features, their_labels in workers.gather((self.drifts, self._features, self._labels)):
            drifts |= their_drifts
            features |= their_features
            for name, by_row in their_labels.items():
                labels.setdefault(name, {}).update(by_row)
        found[DRIFT] = self._placed({row: significant(value) for row, value in drifts.items()})
        if self.space and features:
            nothing = np.full_like(next(iter(features.values())), np.nan)
            several = [[features.get(Entry(row, again), nothing) for again in range(IMAGES)] for row in self.chosen]
            own = np.stack([features.get(Entry(row), nothing) for row in range(len(self.prompts))])
            apart = within_prompt(np.array(several), self.space.cosine)
            found[f"{DIVERSITY}@{self.space.name}"] = self._placed(dict(zip(self.chosen, apart)))
            over = over_prompts(own, self.strata, self.clusters, self.space.cosine)
            found[f"{OVER_PROMPTS}@{self.space.name}"] = over
        for name, by_row in labels.items():
            every = [by_row.get(row, "") for row in range(len(self.prompts))]
            found[f"{ENTROPY}.{name}"] = surprisal(every, self.strata)
        return {name: values for name, values in found.items() if not np.isnan(values).all()}

    def _placed(self, by_row: dict[int, float]) -> np.ndarray:
        """Values [N], NaN for the rows without one."""
        values = np.full(len(self.prompts), np.nan)
        values[list(by_row)] = list(by_row.values())
        return values


def chosen(strata: np.ndarray, clusters: np.ndarray) -> list[int]:
    """Rows of about PROMPTS different prompts, spread evenly over the split, equally many of every stratum."""
    names = list(dict.fromkeys(strata.tolist()))
    each = max(2, math.ceil(PROMPTS / len(names)))  # one prompt of a stratum would say nothing about its spread
    found = []
    for name in names:
        rows = np.flatnonzero(strata == name)
        _, first = np.unique(clusters[rows], return_index=True)
        distinct = rows[np.sort(first)]
        count = min(each, len(distinct))
        found += [int(distinct[i * len(distinct) // count]) for i in range(count)]
    return found


def significant(value: float) -> float:
    """A number of any size to DECIMALS significant digits."""
    return float(f"{value:.{DECIMALS}g}")
