"""The baseline of the update benchmark: on-policy distillation in its straightforward form, as in published code.

It takes three images at a time: a rollout without gradients that keeps its states, then for each state a forward pass
of the teacher, one of the student with gradients, and a backward pass.
"""

import torch

from bench.api.lab import STUDENT, Lab
from bench.sampler.rollout import rollout
from bench.sampler.weighting import step_weights

PUBLISHED_BATCH = 3
"""Number of images per batch in the published code."""


def straightforward_update(
    lab: Lab,
    task: str,
    trajectories: int,
    trained: int,
    batch: int = PUBLISHED_BATCH,
) -> None:
    """Accumulate the gradient of the analytic loss on one task (mean matching, DiffusionOPD, arXiv 2605.15055, Eq. 12).

    The loss covers the first `trained` steps of every trajectory. Prompts and noise are the same as those that
    methods/opd_analytic.py draws, so the gradients of both can be compared.
    """
    sigmas, weights = lab.sampler.schedule.sigmas, step_weights(lab.sampler, "mean_matching")
    prompts = lab.prompts(task, trajectories)
    noise = lab.backbone.noise(trajectories, lab.generator("noise", task))
    for first in range(0, trajectories, batch):
        part = slice(first, first + batch)
        conditioning = lab.encode(prompts[part])
        student, teacher = lab.velocity(conditioning, STUDENT), lab.teacher(task, conditioning)
        generator = lab.generator("kernel", task)
        states = rollout(student, noise[part], lab.sampler, generator, keep=True).states
        for k in range(trained):
            with torch.no_grad():
                target = teacher(states[k], sigmas[k])
            difference = student(states[k], sigmas[k]) - target
            error_B = difference.square().flatten(1).mean(1)
            loss = weights[k] * error_B.sum() / (trajectories * trained)
            loss.backward()
