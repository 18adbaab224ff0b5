"""Single-task RL, which also trains the teachers."""

from methods.rl.method import RlMethod


class SingleTask(RlMethod):
    """RL on exactly one task."""

    name = "single_task"
    source = (
        "RL on one task (DiffusionNFT, arXiv 2509.16117; Flow-GRPO, arXiv 2505.05470); several rewards of an image by "
        "weighted sum, GDPO (arXiv 2601.05242) or Pareto filter (Flow-Multi, Sensors 26(4) 1120)"
    )
    several_tasks = False
