"""From rewards to advantages: rewards are centred within each prompt's group, then scaled."""

from typing import Literal

import numpy as np

Mixing = Literal["per_reward", "pooled", "raw"]
FLOOR = 1e-4
"""Added to every standard deviation, as in the released code of Flow-GRPO and DiffusionNFT."""


def advantages(rewards: dict[str, np.ndarray], mixing: Mixing, global_std: bool) -> dict[str, np.ndarray]:
    """Rewards [prompts, group] of each task -> advantages of the same shape.

    Every reward is centred on its prompt's mean. `per_reward` then divides each task by its own standard deviation.
    `pooled` and `raw` divide all tasks by one common deviation, so that a reward with a larger spread dominates. None
    of them is GDPO (arXiv 2601.05242), a rule for several rewards of ONE image (methods/rl/reward_sets.py); here each
    task has its own images.

    With `global_std` the deviation is that of all rewards of the batch, including the spread of prompt means, as in the
    released code of Flow-GRPO and DiffusionNFT. A task whose prompts differ more in difficulty then gets smaller
    advantages. `pooled` takes the deviation of all tasks' rewards together. `raw` is not a published rule: it takes the
    deviation of all tasks' CENTRED rewards, so that advantages have deviation 1 whatever the spread of prompt means.
    Without `global_std` (`per_reward` only) each prompt group is divided by its own deviation, which gives every task
    equal weight. Deviations are biased estimates, plus 1e-4.
    """
    centred = {task: r - r.mean(1, keepdims=True) for task, r in rewards.items()}
    if mixing != "per_reward":
        scaled_by = centred if mixing == "raw" else rewards
        values = np.concatenate([r.ravel() for r in scaled_by.values()])
        common = float(values.std())
        return {task: c / (common + FLOOR) for task, c in centred.items()}
    axis = None if global_std else 1
    deviation = {task: r.std(axis, keepdims=True) for task, r in rewards.items()}
    return {task: c / (deviation[task] + FLOOR) for task, c in centred.items()}
