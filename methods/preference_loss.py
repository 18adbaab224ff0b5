"""The loss of Diffusion-DPO (arXiv 2311.12908, Eq. 14) as a function of four denoising errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def preference_loss(
    chosen: Tensor, chosen_reference: Tensor, rejected: Tensor, rejected_reference: Tensor, beta: float
) -> Tensor:
    """-log sigmoid(-beta [(chosen - chosen_reference) - (rejected - rejected_reference)]), [B].

    The arguments are the squared errors [B] of the student and of the reference on the preferred and on the rejected
    image, averaged over elements. `beta` stands for the paper's beta T omega; the released code multiplies it by 1/2,
    so that its beta_dpo of 5000 is 2500 here.
    """
    margin = (rejected - rejected_reference) - (chosen - chosen_reference)
    return -torch.nn.functional.logsigmoid(beta * margin)
