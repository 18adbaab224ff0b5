"""The baseline: on-policy distillation as one would first write it, and as published code has it.

Three pictures at a time: a rollout without gradients that keeps its states, then state by state the teacher, the
student with gradients, and a backward pass.
"""

import torch

from bench.api.lab import STUDENT, Lab
from bench.sampler.rollout import rollout
from bench.sampler.weighting import step_weights

PUBLISHED_BATCH = 3


def straightforward_update(lab: Lab, task: str, trajectories: int, trained: int, batch: int = PUBLISHED_BATCH) -> None:
    """Add one task's gradient of the analytic loss, by mean matching (DiffusionOPD, arXiv 2605.15055, Eq. 12).

    The first `trained` steps of every trajectory count. Prompts and noise are those that methods/opd_analytic.py draws.
    """
    sigmas, weights = lab.sampler.schedule.sigmas, step_weights(lab.sampler, "mean_matching")
    prompts = lab.prompts(task, trajectories)
    noise = lab.backbone.noise(trajectories, lab.generator("noise", task))
    for first in range(0, trajectories, batch):
        part = slice(first, first + batch)
        conditioning = lab.encode(prompts[part])
        student, teacher = lab.velocity(conditioning, STUDENT), lab.teacher(task, conditioning)
        states = rollout(student, noise[part], lab.sampler, lab.generator("kernel", task), keep=True).states
        for k in range(trained):
            with torch.no_grad():
                target = teacher(states[k], sigmas[k])
            error = (student(states[k], sigmas[k]) - target).square().flatten(1).mean(1)
            (weights[k] * error.sum() / (trajectories * trained)).backward()
