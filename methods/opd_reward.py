"""On-policy distillation with a reward: an RL engine whose KL penalty pulls towards each task's teacher.

Both terms use the same rollouts, scored once: the engine's policy loss on the task's reward, plus its weight `kl` times
the distance to the teacher at the states that it trains on. For the policy-gradient engines this is verl-omni's policy
loss with the auxiliary loss `distill_kl` (verl-project/verl-omni, pull request 300), and at zero advantages analytic
OPD (weighting no_dt) at the steps with noise. For nft the distance is the squared velocity error at re-noised images
instead of visited states. The teacher is evaluated at the student's guidance scale, as engines do with a reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.api.lab import Lab
from bench.api.method import Needs
from bench.errors import UsageError
from methods.multi_reward import MultiReward, MultiRewardOptions
from methods.rl.engine import Samples

if TYPE_CHECKING:
    from torch import Tensor


class OpdReward(MultiReward):
    """RL on the rewards of all tasks, with each task's teacher as the reference of the penalty."""

    name = "opd_reward"
    title = "RL with distillation"
    source = "policy loss with a distillation term, verl-omni pull request 300; DiffusionOPD, arXiv 2605.15055, Eq. 11"
    needs = Needs(teachers=True, rewards=True)

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Also refuse a run without the distillation term, and teachers at other guidance scales than the student."""
        super().check(spec, sampler)
        options = MultiRewardOptions.model_validate(spec.params)
        if not options.build().options.kl:
            raise UsageError(
                f"params.{options.engine}.kl is the weight of the distillation, and 0 leaves none: set it above 0, or "
                "use method multi_reward"
            )
        if not options.build().penalises_distance:
            raise UsageError(
                f"params.engine {options.engine} uses its reference for more than a penalty, so that a teacher in its "
                f"place would not only be distilled: set another engine for method {cls.name!r}"
            )
        for task in spec.tasks:
            if (scale := spec.teacher_guidance[task]) != spec.sampler.guidance:
                raise UsageError(
                    f"method {cls.name!r} compares student and teachers at one guidance scale, but sampler.guidance is "
                    f"{spec.sampler.guidance:g} and the teacher of {task} has {scale:g}: set teacher_guidance.{task}"
                )

    def losses(self, lab: Lab, task: str, experience: Samples) -> Iterator[Tensor]:
        """The engine's pieces of the loss, with its penalty towards the task's teacher."""
        yield from self.engine.losses(lab, task, experience, lab.teachers[task])
