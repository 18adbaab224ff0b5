"""Interference: cosines between the tasks' gradients at a frozen student, over all weights and per block."""

import re
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from bench.api.lab import STUDENT
from bench.api.method import Method
from bench.hashing import seed_of
from bench.probes.estimates import ProbeLab, task_gradients


def layer_groups(names: list[str]) -> list[str]:
    """The group of each parameter: the place in the first list of layers that its name goes through, or 'other'.

    A place in `transformer_blocks`, the only list of many networks, is called 'block 3'; in another list it has the
    list's name, such as 'single_transformer_blocks 3' or 'down_blocks 1'.
    """
    groups = []
    for name in names:
        place = re.match(r"([\w.]*?)\.(\d+)\.", name)
        of = "block" if place and place[1] == "transformer_blocks" else place and place[1]
        groups.append(f"{of} {place[2]}" if place else "other")
    return groups


def interference(method: Method, lab: ProbeLab, tasks: tuple[str, ...], estimates: int) -> dict[str, dict[str, float]]:
    """'task a | task b' -> {'all' or group -> cosine of the mean gradients}; negative if the tasks conflict.

    Noise in the means of finitely many estimates biases cosines towards 0. Every cosine is therefore between two
    independent halves of `estimates` each: the self-cosine 'task a | task a' is then an upper bound for the others,
    which are means over both pairings of the halves.
    """
    halves: list[dict[str, Tensor]] = []
    for half in range(2):
        sums: dict[str, Tensor] = {}
        for i in range(estimates):
            seed = seed_of("interference", lab.seed, half * estimates + i)
            gradients = task_gradients(method, lab.at(seed, seed), tasks)
            for task, gradient in gradients.items():
                sums[task] = sums.get(task, torch.zeros_like(gradient)) + gradient / estimates
        halves.append(sums)
    named = lab.backbone.adapters.state(STUDENT)
    sizes = [tensor.numel() for tensor in named.values()]
    groups = layer_groups(list(named))
    result = {}
    for a, b in [*combinations(tasks, 2), *((task, task) for task in tasks)]:
        pairings = []
        # A task paired with itself has one pairing, which dict.fromkeys keeps once.
        for left, right in dict.fromkeys([(a, b), (b, a)]):
            first, second = halves[0][left].split(sizes), halves[1][right].split(sizes)
            pairings.append(_cosines(first, second, groups))
        result[f"{a} | {b}"] = {group: fmean(found[group] for found in pairings) for group in pairings[0]}
    return result


def _cosines(left: tuple[Tensor, ...], right: tuple[Tensor, ...], groups: list[str]) -> dict[str, float]:
    """Cosine over all weights and over those of each group; the gradients are given per parameter."""
    found = {}
    for group in ("all", *dict.fromkeys(groups)):
        mine = [i for i, name in enumerate(groups) if group in ("all", name)]
        a, b = (torch.cat([gradient[i] for i in mine]) for gradient in (left, right))
        found[group] = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    return found
