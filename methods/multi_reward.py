"""Joint multi-reward RL: every update sees every task, one adapter, any engine.

Each task keeps its own prompts and its own reward, as in the multi-task baselines of DiffusionOPD
(arXiv 2605.15055, Sec. 5); how their advantages compare is `mixing`.
"""

from methods.rl.method import RlMethod


class MultiReward(RlMethod):
    name = "multi_reward"
    source = "joint RL on all tasks (DiffusionNFT, arXiv 2509.16117; GDPO normalisation or raw sum)"
