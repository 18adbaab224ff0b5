"""From the several rewards of an image to one advantage (section `rewards` of a spec).

sum: the weighted sum is the reward, as in the released code of Flow-GRPO and DiffusionNFT. The reward with the largest
spread dominates.

per_reward: the weighted sum of each reward's advantage in its own standard deviation (`global_std` says which). With
the deviation of each group this is how MixGRPO's code (arXiv 2507.21802) aggregates advantages, but that its deviations
are unbiased, with 1e-8 added.

gdpo: GDPO (arXiv 2601.05242): the weighted sum of each reward's advantage in its group's deviation, whitened over the
task's batch. The released code (for TRL) takes unbiased deviations, and its advantages are therefore sqrt(1 - 1/N)
times these for N images, apart from the 1e-4 that both add to deviations.

pareto: as sum, but only images that no other image of their group dominates keep their advantage; the others get 0. An
image dominates another if none of its rewards is lower and one is higher. After the abstract of Flow-Multi (Sensors
26(4) 1120, 2026), of which no code is known.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from bench.errors import UsageError
from methods.rl.advantages import FLOOR, Mixing, advantages

SetRule = Literal["sum", "per_reward", "gdpo", "pareto"]
SOURCES: dict[SetRule, str] = {
    "sum": "weighted sum of rewards, released code of Flow-GRPO and DiffusionNFT",
    "per_reward": "weighted sum of advantages, MixGRPO, arXiv 2507.21802",
    "gdpo": "GDPO, arXiv 2601.05242",
    "pareto": "non-dominated images of a group, Flow-Multi, Sensors 26(4) 1120",
}
"""Where each rule comes from."""


def check_rule(rule: SetRule, mixing: Mixing, global_std: bool) -> None:
    """Raise UsageError for a rule whose standard deviations contradict those of the other settings."""
    if rule in ("per_reward", "gdpo") and mixing != "per_reward":
        raise UsageError(
            f"params.mixing {mixing} divides all tasks by one standard deviation, but params.reward_set {rule} divides "
            "every reward by its own: set params.mixing per_reward"
        )
    if rule == "gdpo" and not global_std:
        raise UsageError(
            "params.reward_set gdpo divides by each group's standard deviation and then by the batch's: set "
            "params.global_std true"
        )


def set_advantages(
    summed: np.ndarray, separate: dict[str, np.ndarray], weights: Mapping[str, float], rule: SetRule, global_std: bool
) -> np.ndarray:
    """The advantages [prompts, group] of a task with several rewards.

    `summed`: the advantages of the weighted sum of the rewards, [prompts, group]. `separate` and `weights`: scorer ->
    its rewards [prompts, group] and its weight.
    """
    if rule == "sum":
        return summed
    if rule == "pareto":
        return np.where(non_dominated(np.stack([*separate.values()])), summed, 0.0)
    scaled = advantages(separate, "per_reward", global_std and rule == "per_reward")
    total = np.sum([weights[name] * values for name, values in scaled.items()], 0)
    return (total - total.mean()) / (total.std() + FLOOR) if rule == "gdpo" else total


def non_dominated(rewards_KPG: np.ndarray) -> np.ndarray:
    """Which images no other image of their group dominates, bool [prompts, group], from K rewards of each."""
    kept = []
    for rewards_KG in rewards_KPG.swapaxes(0, 1):
        one, other = rewards_KG[:, :, None], rewards_KG[:, None, :]
        dominated = (other >= one).all(0) & (other > one).any(0)
        kept.append(~dominated.any(1))
    return np.stack(kept)
