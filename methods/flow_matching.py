"""Flow-matching fine-tuning on the user's own images with captions.

The training objective of flow-matching models (arXiv 2210.02747, Eq. 23; SD3, arXiv 2403.03206, Sec. 2), on files
instead of the teachers' samples of `sft`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bench.api.lab import STUDENT, Lab
from bench.api.method import Work
from bench.lazy import torch
from bench.sampler.parts import parts
from methods.distillation import squared_error
from methods.offline import OfflineBatch, OfflineMethod, OfflineOptions, noised

if TYPE_CHECKING:
    from torch import Tensor


class FlowMatching(OfflineMethod):
    """Regression of the student's velocity on images from files."""

    name = "flow_matching"
    title = "Flow matching on images"
    source = "flow matching on the user's images (arXiv 2210.02747, Eq. 23)"
    Options = OfflineOptions
    columns = ("file_name",)
    measures_distance = False  # the error does not reach 0, as images of one prompt differ

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """One pass with gradients per image."""
        return cls.row_work(spec, reference=0)

    def losses(self, lab: Lab, task: str, experience: OfflineBatch) -> Iterator[Tensor]:
        """Squared error of the velocity to eps - x0 at one noise level per image, one piece per chunk of rows."""
        (x0,), conditioning = experience.latents, experience.conditioning
        sigma, noise = noised(lab, task, x0)
        x_t = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
        for part in parts(range(len(x0)), self.options.chunk):
            v = lab.velocity(conditioning[part], STUDENT, guidance=1.0)(x_t[part], sigma[part])
            yield squared_error(v, noise[part] - x0[part]).sum() / len(x0)
