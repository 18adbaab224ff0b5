"""Diffusion-DPO (arXiv 2311.12908) on flow models: offline pairs of images, no rollouts or rewards."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bench.api.lab import STUDENT, Lab
from bench.api.method import Method, Options, Work
from bench.backbones.conditioning import Conditioning
from bench.backbones.meter import Passes
from bench.errors import UsageError
from bench.sampler.draws import draw, normal


class DpoOptions(Options):
    """Settings of Diffusion-DPO."""

    pairs: str
    """Folder with a file TASK.safetensors per task. It contains the tensors "winner" and "loser" [N, 3, H, W] in
    [0, 1], and in its metadata "prompts", one per line."""
    batch: int = 8
    """Pairs per task and update."""
    beta: float = 500.0
    """Strength of the KL regularisation towards the base."""


@dataclass
class Pairs:
    """This process's pairs in one update: latents [B, C, h, w] and prompts."""

    winner: Tensor
    loser: Tensor
    conditioning: Conditioning


class DiffusionDpo(Method):
    """Train the student to denoise winners better, and losers worse, than the base does."""

    name = "dpo"
    source = "Diffusion-DPO, arXiv 2311.12908, Eq. 14, with the velocity's error in place of the noise's"
    Options = DpoOptions
    lowers_memory = ("batch",)

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Raise UsageError, before anything is loaded, if the pairs of a task are missing."""
        super().check(spec, sampler)
        for task in spec.tasks:
            file = Path(spec.params["pairs"]) / f"{task}.safetensors"
            if not file.is_file():
                raise UsageError(f"params.pairs has no pairs of task {task!r}: {file} is missing")

    @classmethod
    def predict(cls, spec, sampler) -> int:
        """NFE of one update, from `work`."""
        return cls.work(spec, sampler).passes.nfe

    @classmethod
    def work(cls, spec, sampler) -> Work:
        """Per image one pass of the base and one of the student with gradients, without guidance."""
        pictures = 2 * spec.params["batch"] * len(spec.tasks)
        at_once = 2 * spec.params["batch"]
        return Work(Passes(forward=pictures, trained=pictures), trained_at_once=at_once, kept=pictures)

    def collect(self, lab: Lab, task: str) -> Pairs:
        """Draw the update's pairs and encode their images.

        The draw depends only on the run's seed and the update, so a resumed run trains on the same pairs. All processes
        draw the same pairs, and each reads its own rows.
        """
        with safe_open(Path(self.options.pairs) / f"{task}.safetensors", "pt") as file:
            prompts = file.metadata()["prompts"].split("\n")
            chosen = lab.numpy_generator("pairs", task).choice(len(prompts), self.options.batch)
            mine = [int(chosen[row]) for row in lab.shard_rows(task, self.options.batch)]
            # Slices read single rows, so that the file may be larger than memory.
            winner = torch.stack([file.get_slice("winner")[row] for row in mine])
            loser = torch.stack([file.get_slice("loser")[row] for row in mine])
        device = lab.backbone.device
        return Pairs(
            lab.backbone.encode_pictures(winner.to(device)),
            lab.backbone.encode_pictures(loser.to(device)),
            lab.backbone.encode([prompts[row] for row in mine]),
        )

    def losses(self, lab: Lab, task: str, experience: Pairs) -> Iterator[Tensor]:
        """Eq. 14 at one noise level per pair, in a single piece."""
        generator = lab.generator("levels", task)
        count = len(experience.winner)
        device = experience.winner.device
        sigma = draw(lambda n: torch.rand(n, generator=generator), count, generator).to(device)
        noise = normal(experience.winner.shape, generator, device)
        both = torch.cat([experience.winner, experience.loser])
        # Both images of a pair get the same noise and noise level, which lowers the variance of their difference.
        sigmas, noises = sigma.repeat(2), noise.repeat(2, 1, 1, 1)
        x_t = torch.lerp(both, noises, sigmas.view(-1, 1, 1, 1))
        conditioning = experience.conditioning.repeat(2)

        def error(adapter: str | None) -> Tensor:
            v = lab.velocity(conditioning, adapter, guidance=1.0)(x_t, sigmas)
            return (v - (noises - both)).square().flatten(1).mean(1)

        with torch.no_grad():
            base = error(None)
        winner, loser = (error(STUDENT) - base).chunk(2)
        margin = winner - loser
        yield -torch.nn.functional.logsigmoid(-self.options.beta * margin).mean()
