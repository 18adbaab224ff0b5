"""Diffusion-DPO (arXiv 2311.12908) on the user's own pairs of a preferred and a rejected image.

The denoising errors are those of the velocity, as in the DPO of flow models (Flow-DPO with a constant weight, arXiv
2501.13918, Sec. 4.1). The reference is the student as it starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.config.bounds import Moderate
from bench.lazy import torch
from bench.sampler.parts import parts
from bench.sampler.total import Total
from methods.distillation import squared_error
from methods.offline import OfflineBatch, OfflineMethod, OfflineOptions, noised
from methods.preference_loss import preference_loss

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE = "reference"


class OfflineDpoOptions(OfflineOptions):
    """Settings of Diffusion-DPO on the user's pairs."""

    beta: Moderate = 2500.0
    """Strength of the regularisation towards the reference; 2500 is the released code's beta_dpo of 5000, which it
    halves."""


class OfflineDpo(OfflineMethod):
    """Denoise preferred images better than the reference does, and rejected ones worse."""

    name = "offline_dpo"
    title = "Diffusion-DPO on pairs"
    source = "Diffusion-DPO on the user's pairs (arXiv 2311.12908, Eq. 14)"
    Options = OfflineDpoOptions
    columns = ("chosen_file_name", "rejected_file_name")
    adapters = (REFERENCE,)

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """Per image one pass of the student with gradients and one of the reference."""
        return cls.row_work(spec, reference=1)

    def losses(self, lab: Lab, task: str, experience: OfflineBatch) -> Iterator[Tensor]:
        """Eq. 14 at one noise level per pair, one piece per chunk of pairs; logs the fraction of pairs told apart."""
        chosen, rejected = experience.latents
        sigma, noise = noised(lab, task, chosen)
        told_apart = Total()
        for part in parts(range(len(chosen)), self.options.chunk):
            x0 = torch.cat([chosen[part], rejected[part]])
            # Both images of a pair get the same noise, as in the released code.
            eps, level = noise[part].repeat(2, 1, 1, 1), sigma[part].repeat(2)
            x_t, conditioning = torch.lerp(x0, eps, level.view(-1, 1, 1, 1)), experience.conditioning[part].repeat(2)
            student = squared_error(lab.velocity(conditioning, STUDENT, guidance=1.0)(x_t, level), eps - x0)
            with torch.no_grad():
                reference = squared_error(lab.velocity(conditioning, REFERENCE, guidance=1.0)(x_t, level), eps - x0)
            better, worse = (student.detach() - reference).chunk(2)
            told_apart.add((better < worse).float().sum() / len(chosen))
            (won, lost), (won_before, lost_before) = student.chunk(2), reference.chunk(2)
            yield preference_loss(won, won_before, lost, lost_before, self.options.beta).sum() / len(chosen)
        lab.note(f"told_apart/{task}", float(told_apart))

    def distance(self, lab: Lab, task: str) -> float:
        """The fraction of pairs that are not told apart."""
        return 1 - lab.notes[f"told_apart/{task}"]
