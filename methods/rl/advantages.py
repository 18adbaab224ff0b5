"""From rewards to advantages: centred within a prompt's group, then scaled."""

from typing import Literal

import numpy as np

Mixing = Literal["per_reward", "raw"]
FLOOR = 1e-4


def advantages(rewards: dict[str, np.ndarray], mixing: Mixing, global_std: bool) -> dict[str, np.ndarray]:
    """Rewards [prompts, group] of each task -> advantages of the same shape.

    Every reward is centred on its prompt's mean. `per_reward` then divides each task by its own standard deviation
    (GDPO's normalise-then-mix: every task pulls equally), `raw` divides all tasks by one common deviation, so that a
    reward with a larger spread dominates (the weighted sum of Flow-GRPO and DiffusionNFT). The deviation is the
    batch's, or with `global_std` False each prompt group's own (per_reward only); biased, plus 1e-4, as released code.
    """
    centred = {task: r - r.mean(1, keepdims=True) for task, r in rewards.items()}
    if mixing == "raw":
        common = float(np.concatenate([r.ravel() for r in centred.values()]).std())
        return {task: c / (common + FLOOR) for task, c in centred.items()}
    deviation = {t: r.std() if global_std else r.std(1, keepdims=True) for t, r in rewards.items()}
    return {task: c / (deviation[task] + FLOOR) for task, c in centred.items()}
