"""From rewards to advantages: centred within a prompt's group, then scaled."""

from typing import Literal

import numpy as np

Mixing = Literal["per_reward", "raw"]
FLOOR = 1e-4


def advantages(rewards: dict[str, np.ndarray], mixing: Mixing, global_std: bool) -> dict[str, np.ndarray]:
    """Rewards [prompts, group] of each task -> advantages of the same shape.

    Every reward is centred on its prompt's mean. `per_reward` then divides each task by its own standard deviation,
    `raw` divides all tasks by one common deviation, so that a reward with a larger spread dominates (the weighted sum
    of Flow-GRPO and DiffusionNFT). Neither is GDPO (arXiv 2601.05242), which normalises several rewards of ONE picture
    within its group, sums them and whitens the sum over the batch; here each task has pictures of its own.

    With `global_std` the deviation is that of all rewards of the batch, prompts' means included, as released code has
    it: a task whose prompts differ much in difficulty pulls less than one whose prompts do not. Without it
    (`per_reward` only) it is each prompt group's own, and every task pulls equally. Biased, plus 1e-4.
    """
    centred = {task: r - r.mean(1, keepdims=True) for task, r in rewards.items()}
    if mixing == "raw":
        common = float(np.concatenate([r.ravel() for r in centred.values()]).std())
        return {task: c / (common + FLOOR) for task, c in centred.items()}
    deviation = {t: r.std() if global_std else r.std(1, keepdims=True) for t, r in rewards.items()}
    return {task: c / (deviation[task] + FLOOR) for task, c in centred.items()}
