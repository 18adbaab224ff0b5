"""Single-task RL, which also trains the teachers."""

from methods.rl.method import RlMethod


class SingleTask(RlMethod):
    """RL on exactly one task."""

    name = "single_task"
    title = "Single-task RL"
    source = "RL on one task (DiffusionNFT, arXiv 2509.16117; Flow-GRPO, arXiv 2505.05470)"
    several_tasks = False
