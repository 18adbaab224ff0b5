"""The shared loop of engines that learn on the forward process: they re-noise images and compare velocities there.

Images are sampled with the "old" adapter, a lagging copy of the student, by any sampler. Each image is noised again to
levels drawn from the rollout's schedule, and an engine turns the velocities of the student, of the old policy and of
the reference at the re-noised images into a loss per image.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from bench.api.lab import STUDENT, Lab
from bench.api.method import Options
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.config.bounds import Count, Fraction, Weight
from bench.errors import UsageError
from bench.lazy import torch
from bench.sampler.draws import draw, normal
from bench.sampler.parts import parts
from bench.sampler.rollout import Sampler, Trajectory, rollout
from methods.rl.engine import Batch, Engine, Samples
from methods.rl.inner_updates import inner_rows
from methods.rl.old_policy import OLD_DECAY
from methods.rl.ratios import Ratios, beyond
from methods.rl.renoised import Renoised, mean_square

if TYPE_CHECKING:
    from torch import Tensor

OLD = "old"
"""Adapter of the old policy."""


class ForwardOptions(Options):
    """Settings of every engine on the forward process."""

    unsaid: ClassVar[tuple[str, ...]] = ("timestep_fraction", "inner_updates")

    timesteps: Count = 9
    """Noise levels at which each image is trained, drawn from the rollout's schedule."""
    timestep_fraction: Fraction = 1.0
    """Noise levels are drawn from the first int(steps * timestep_fraction) of the schedule, the noisiest."""
    kl: Weight = 1e-4
    """Weight of the squared velocity error to the reference."""
    inner_updates: Count = 1
    """Optimiser steps per update, each on its own share of the prompts."""
    chunk: Count = 192
    """Latents per forward with gradients; it bounds memory."""


class ForwardProcess(Engine):
    """Base of the engines; a subclass defines `policy_loss`, and `decay` unless it has a setting `old_decay`."""

    adapters: ClassVar[tuple[str, ...]] = (OLD,)
    sampled_by: ClassVar[str] = OLD
    """Adapter that samples the images."""
    shared_noise: ClassVar[bool] = False
    """Whether images that are compared get the same noise."""
    likelihood: ClassVar[bool] = False
    """Whether the objective has a likelihood ratio, whose statistics are logged; it then has `log_ratio` and a
    setting `clip`."""

    @abstractmethod
    def policy_loss(self, at: Renoised) -> Tensor:
        """Loss [B] of the re-noised images, without the penalty."""

    def decay(self, updates: int) -> float:
        """Decay d of the old policy after so many optimiser steps: old = d old + (1 - d) student.

        Default: the schedule that the setting `old_decay` names.
        """
        return OLD_DECAY[self.options.old_decay](updates)

    def log_ratio(self, at: Renoised) -> Tensor:
        """Log-ratio [B] of the student's likelihood to the old policy's."""
        raise NotImplementedError

    def compared(self, group_size: int) -> int:
        """Number of neighbouring images that a loss compares: they get the same noise levels and are in one chunk."""
        return 1

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's velocity is used."""
        return self.options.kl > 0

    @property
    def reference_guidance(self) -> float | None:
        """Guidance scale of the reference; None: the student's."""
        return None

    def levels(self, sampler: Sampler) -> int:
        """Number of noise levels that may be drawn."""
        return int(sampler.steps * self.options.timestep_fraction)

    def check(self, sampler: Sampler, batch: Batch) -> None:
        """Also require a noise level to draw, and chunks that can hold the images that are compared."""
        super().check(sampler, batch)
        o, section = self.options, f"params.{self.name}"
        if not self.levels(sampler):
            raise UsageError(
                f"{section}.timestep_fraction {o.timestep_fraction:g} of {sampler.steps} steps trains no noise level"
            )
        if o.chunk < (compared := self.compared(batch.group_size)):
            raise UsageError(f"{section}.chunk {o.chunk} is below the {compared} images that {self.name} compares")

    def sample(self, lab: Lab, task: str, conditioning: Conditioning, group_size: int) -> Trajectory:
        """Sample images; only they are kept, not the trajectory."""
        noise = lab.backbone.noise(len(conditioning), lab.generator("noise", task))
        field = lab.velocity(conditioning, self.sampled_by)
        return rollout(field, noise, lab.sampler, lab.generator("kernel", task))

    def penalty(self, at: Renoised) -> Tensor:
        """Penalty [B] that `kl` weights: the squared velocity error to the reference."""
        return mean_square(at.v - at.v_reference)

    def losses(self, lab: Lab, task: str, samples: Samples, reference: str | None) -> Iterator[Tensor]:
        """One piece per noise level and chunk of this inner update's images."""
        o, x0, cond = self.options, samples.trajectory.final, samples.conditioning
        generator = lab.generator("timesteps", task)
        levels = torch.tensor(lab.sampler.schedule.sigmas[: self.levels(lab.sampler)])
        count = min(o.timesteps, len(levels))
        compared = self.compared(samples.group_size)
        noise_for = compared if self.shared_noise else 1

        def keys(rows: int) -> Tensor:
            return torch.rand(rows, len(levels), generator=generator)

        # Every image, or all images that are compared, get random noise levels without repetition.
        order = draw(keys, len(x0) // compared, generator).argsort(1)[:, :count]
        drawn = levels[order].repeat_interleave(compared, 0).to(x0.device)
        mine, whole = inner_rows(len(x0), lab.rows.get(task), o.inner_updates, lab.inner)
        # The training loop multiplies each process's loss by its shard fraction, which would be wrong here: an inner
        # update's prompts are not spread over the processes like the update's.
        total = whole * count * lab.shard_fraction(task)
        ratios = Ratios()
        for k in range(count):
            sigma = drawn[:, k]
            noise = normal((len(x0) // noise_for, *x0.shape[1:]), generator, x0.device)
            noise = noise.repeat_interleave(noise_for, 0)
            x_t = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
            for part in parts(mine, o.chunk // compared * compared):
                state, prompts = (x_t[part], sigma[part]), cond[part]
                v = lab.velocity(prompts, STUDENT, self.trained_guidance)(*state)
                with torch.no_grad():
                    v_old = lab.velocity(prompts, OLD, self.trained_guidance)(*state)
                    v_reference = v_old
                    if self.needs_reference:
                        scale = self.trained_guidance if self.reference_guidance is None else self.reference_guidance
                        v_reference = lab.velocity(prompts, reference, scale)(*state)
                velocities = (v, v_old, v_reference)
                at = Renoised(x0[part], noise[part], *state, samples.advantages[part], *velocities, samples.group_size)
                if self.likelihood:
                    with torch.no_grad():
                        log_ratio = self.log_ratio(at)
                        ratios.add(log_ratio, beyond(log_ratio, o.clip), mean_square(v - v_old))
                pieces = self.policy_loss(at) + o.kl * self.penalty(at)
                yield pieces.sum() / total
        if self.likelihood:
            ratios.note(lab, task, 1 / total)

    def trained(self, batch: Batch) -> int:
        """Number of images that are trained."""
        return batch.pictures

    def trained_at_once(self, batch: Batch) -> int:
        """Most images per forward with gradients: whole sets of images that are compared."""
        compared = self.compared(batch.group_size)
        return min(self.trained(batch) // self.options.inner_updates, self.options.chunk // compared * compared)

    def passes(self, sampler: Sampler, batch: Batch) -> Passes:
        """A rollout of every image, and per trained image and noise level a pass of the student with gradients, one of
        the old policy and, if it is needed, one of the reference."""
        sampled = batch.passes
        own = fixed = sampled if self.trained_guidance is None else sampler.passes(self.trained_guidance)
        if self.needs_reference:
            guidance = self.reference_guidance
            fixed += own if guidance is None else sampler.passes(guidance)
        levels = min(self.options.timesteps, self.levels(sampler)) * self.trained(batch)
        return Passes(forward=sampler.steps * sampled * batch.pictures + levels * fixed, trained=levels * own)

    def kept(self, sampler: Sampler) -> int:
        """The image's latents, clean and re-noised."""
        return 2

    def after_update(self, lab: Lab) -> None:
        """Move the old policy towards the student."""
        self.follow(lab, OLD, self.decay((lab.step + 1) * self.options.inner_updates))

    def follow(self, lab: Lab, adapter: str, decay: float) -> None:
        """Replace an adapter by decay * itself + (1 - decay) * the student."""
        adapters = lab.backbone.adapters
        old, student = adapters.parameters(adapter), adapters.parameters(STUDENT)
        torch._foreach_lerp_(tuple(old), tuple(student), 1 - decay)
