"""Single-task RL: how teachers are made. The run has one task."""

from bench.errors import UsageError
from methods.rl.method import RlMethod


class SingleTask(RlMethod):
    name = "single_task"
    source = "RL on one reward (DiffusionNFT, arXiv 2509.16117; Flow-GRPO, arXiv 2505.05470)"

    @classmethod
    def check(cls, spec, sampler) -> None:
        super().check(spec, sampler)
        if len(spec.tasks) != 1:
            raise UsageError(f"single_task takes one task, got {', '.join(spec.tasks)}; multi_reward takes several")
