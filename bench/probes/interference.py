"""Interference: cosine between the tasks' gradients at one student, over all weights and per transformer block."""

import re
from itertools import combinations

import torch
from torch import Tensor

from bench.lab import STUDENT
from bench.method import Method
from bench.probes.estimates import ProbeLab, task_gradients


def layer_groups(names: list[str]) -> list[str]:
    """The group of each parameter: its transformer block, or 'other'."""
    found = [re.search(r"transformer_blocks\.(\d+)\.", name) for name in names]
    return [f"block {match[1]}" if match else "other" for match in found]


def interference(method: Method, lab: ProbeLab, tasks: tuple[str, ...], estimates: int) -> dict[str, dict[str, float]]:
    """'task a | task b' -> {'all' or group -> cosine of the mean gradients}. Negative: they pull apart.

    Means of finitely many estimates are noisy, which draws cosines towards 0: compare with the self-cosine that
    `'task a | task a'` reports between two independent halves.
    """
    halves: list[dict[str, Tensor]] = []
    for half in range(2):
        sums: dict[str, Tensor] = {}
        for i in range(estimates):
            index = half * estimates + i
            for task, gradient in task_gradients(method, lab.at(index, index), tasks).items():
                sums[task] = sums.get(task, torch.zeros_like(gradient)) + gradient / estimates
        halves.append(sums)
    named = lab.backbone.adapters.state(STUDENT)
    sizes = [tensor.numel() for tensor in named.values()]
    groups = layer_groups(list(named))
    result = {}
    for a, b in [*combinations(tasks, 2), *((task, task) for task in tasks)]:
        left, right = (halves[0][a], halves[1][b]) if a == b else (sum(h[a] for h in halves), sum(h[b] for h in halves))
        parts = list(zip(groups, left.split(sizes), right.split(sizes)))
        cosines = {"all": _cosine(left, right)}
        for group in dict.fromkeys(groups):
            mine = [(x, y) for g, x, y in parts if g == group]
            cosines[group] = _cosine(torch.cat([x for x, _ in mine]), torch.cat([y for _, y in mine]))
        result[f"{a} | {b}"] = cosines
    return result


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))
