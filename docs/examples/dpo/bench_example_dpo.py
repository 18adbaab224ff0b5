"""Diffusion-DPO (arXiv 2311.12908) on flow models: offline pairs of pictures, no rollouts, no rewards."""

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
    """Folder with TASK.safetensors: tensors "winner" and "loser" [N, 3, H, W] in [0, 1], and in its metadata "prompts",
    one a line."""
    batch: int = 8
    """Pairs of a task in one update."""
    beta: float = 500.0


@dataclass
class Pairs:
    """This process's pairs of an update."""

    winner: Tensor
    loser: Tensor
    conditioning: Conditioning


class DiffusionDpo(Method):
    """The student learns to denoise winners better, and losers worse, than the base does."""

    name = "dpo"
    source = "Diffusion-DPO, arXiv 2311.12908, Eq. 14, with the velocity's error for the noise's"
    Options = DpoOptions
    lowers_memory = ("batch",)

    @classmethod
    def check(cls, spec, sampler) -> None:
        """Refuse a folder without the pairs of a task, before anything loads."""
        super().check(spec, sampler)
        for task in spec.tasks:
            if not (file := Path(spec.params["pairs"]) / f"{task}.safetensors").is_file():
                raise UsageError(f"params.pairs: there are no pairs of task {task!r}: {file} is missing")

    @classmethod
    def predict(cls, spec, sampler) -> int:
        return cls.work(spec, sampler).passes.nfe

    @classmethod
    def work(cls, spec, sampler) -> Work:
        pictures = 2 * spec.params["batch"] * len(spec.tasks)
        at_once = 2 * spec.params["batch"]
        return Work(Passes(forward=pictures, trained=pictures), trained_at_once=at_once, kept=pictures)

    def collect(self, lab: Lab, task: str) -> Pairs:
        """The update's pairs, as latents: drawn anew in every update, the same ones whatever ran before."""
        with safe_open(Path(self.options.pairs) / f"{task}.safetensors", "pt") as file:
            prompts = file.metadata()["prompts"].split("\n")
            chosen = lab.numpy_generator("pairs", task).choice(len(prompts), self.options.batch)
            mine = [int(chosen[row]) for row in lab.shard_rows(task, self.options.batch)]
            winner, loser = (torch.stack([file.get_slice(name)[row] for row in mine]) for name in ("winner", "loser"))
        latents = [lab.backbone.encode_pictures(pictures.to(lab.backbone.device)) for pictures in (winner, loser)]
        return Pairs(*latents, lab.backbone.encode([prompts[row] for row in mine]))

    def losses(self, lab: Lab, task: str, experience: Pairs) -> Iterator[Tensor]:
        generator = lab.generator("levels", task)
        count = len(experience.winner)
        sigma = draw(lambda n: torch.rand(n, generator=generator), count, generator).to(experience.winner.device)
        noise = normal(experience.winner.shape, generator).to(experience.winner.device)
        both = torch.cat([experience.winner, experience.loser])
        sigmas, noises = sigma.repeat(2), noise.repeat(2, 1, 1, 1)  # a pair shares its noise and its level
        x_t = torch.lerp(both, noises, sigmas.view(-1, 1, 1, 1))
        conditioning = experience.conditioning.repeat(2)

        def error(adapter: str | None) -> Tensor:
            v = lab.velocity(conditioning, adapter, guidance=1.0)(x_t, sigmas)
            return (v - (noises - both)).square().flatten(1).mean(1)

        with torch.no_grad():
            base = error(None)
        winner, loser = (error(STUDENT) - base).chunk(2)
        yield -torch.nn.functional.logsigmoid(-self.options.beta * (winner - loser)).mean()
