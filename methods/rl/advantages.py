"""From rewards to advantages: centred within a prompt's group, then scaled."""

from typing import Literal

import numpy as np

Mixing = Literal["per_reward", "pooled", "raw"]
FLOOR = 1e-4


def advantages(rewards: dict[str, np.ndarray], mixing: Mixing, global_std: bool) -> dict[str, np.ndarray]:
    """Rewards [prompts, group] of each task -> advantages of the same shape.

    Every reward is centred on its prompt's mean. `per_reward` then divides each task by its own standard deviation,
    `pooled` and `raw` divide all tasks by one common deviation, so that a reward with a larger spread dominates. None
    is GDPO (arXiv 2601.05242), which normalises several rewards of ONE picture within its group, sums them and whitens
    the sum over the batch; here each task has pictures of its own.

    With `global_std` the deviation is that of all rewards of the batch, prompts' means included, as the released code
    of Flow-GRPO and DiffusionNFT has it: a task whose prompts differ much in difficulty pulls less than one whose
    prompts do not. That of `pooled` is of all tasks' rewards together. `raw` is no published rule: its deviation is of
    all tasks' CENTRED rewards, without prompts' means, so that advantages have deviation 1 however much prompts differ.
    Without `global_std` (`per_reward` only) it is each prompt group's own, and every task pulls equally. Biased, plus
    1e-4.
    """
    centred = {task: r - r.mean(1, keepdims=True) for task, r in rewards.items()}
    if mixing != "per_reward":
        common = float(np.concatenate([r.ravel() for r in (centred if mixing == "raw" else rewards).values()]).std())
        return {task: c / (common + FLOOR) for task, c in centred.items()}
    deviation = {t: r.std() if global_std else r.std(1, keepdims=True) for t, r in rewards.items()}
    return {task: c / (deviation[task] + FLOOR) for task, c in centred.items()}
