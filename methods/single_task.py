"""Single-task RL: how teachers are made."""

from methods.rl.method import RlMethod


class SingleTask(RlMethod):
    name = "single_task"
    source = "RL on one reward (DiffusionNFT, arXiv 2509.16117; Flow-GRPO, arXiv 2505.05470)"
    several_tasks = False
