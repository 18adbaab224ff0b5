"""Names of the metrics that are shown beside a headline metric, because its rise could hide their fall.

Stricter scores of a task, and measures of any model (bench/training/measures.py): the diversity of its images and its
distance from the base.
"""

REWARD = "reward"
"""Metric under which every task reports what methods train on."""
GOLD = "gold"
"""Metric under which a task reports the known utility."""
STRICTER = ("strict", GOLD)
"""Metrics of tasks: GenEval's exact counts, and the utility behind a learned reward."""
DRIFT, DIVERSITY, OVER_PROMPTS, ENTROPY = "drift", "diversity", "diversity over prompts", "entropy"
"""Names of the measures; those of diversity are followed by @ and the feature space, the entropy by the attribute."""


def is_measure(metric: str) -> bool:
    """Whether a metric is a measure of a model and not a score of a task."""
    return metric == DRIFT or metric.startswith((f"{DIVERSITY}@", f"{OVER_PROMPTS}@", f"{ENTROPY}."))


def is_beside(metric: str) -> bool:
    """Whether a metric is shown beside the headline."""
    return metric in STRICTER or is_measure(metric)


def is_score(metric: str) -> bool:
    """Whether a metric is a score of the task's images: neither a measure nor, like gold.match, a part of a score."""
    return not is_measure(metric) and "." not in metric


def is_alarming(metric: str) -> bool:
    """Whether alarms compare it with the reward (bench/analysis/alarms.py)."""
    return metric in STRICTER or metric.startswith(f"{DIVERSITY}@")


def is_final(metric: str) -> bool:
    """Whether a metric of final models is used, beside the headline."""
    return is_score(metric) or is_measure(metric)


def is_along(metric: str) -> bool:
    """Whether a metric is used along training, beside the headline."""
    return metric in (REWARD, DRIFT) or is_alarming(metric)
