"""A model that predicts noise on a variance-preserving path, as Stable Diffusion 1.5 does, behind the same contract.

With y = x / (alpha + sigma) and s = sigma / (alpha + sigma) such a model is a rectified flow: y = (1 - s) x0 + s eps,
and its velocity is eps - x0. Every kernel and every method then holds as it is; `ode` is DDIM at eta 0.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.backbones.conditioning import Conditioning
from bench.backbones.flow import FlowBackbone
from bench.config.compute import PLAIN, Compute
from bench.config.descriptor import Descriptor
from bench.hashing import seed_of

WIDTH, TOKENS = 32, 4
LEAST_ALPHA = 1e-3
"""At pure noise a picture cannot be told from its noise: the path begins just below."""


def variance_preserving(s_B: Tensor) -> tuple[Tensor, Tensor]:
    """s -> (alpha, sigma) with alpha^2 + sigma^2 = 1 and s = sigma / (alpha + sigma), each [B]."""
    alpha, sigma = (1 - s_B).clamp_min(LEAST_ALPHA), s_B
    norm = (alpha.square() + sigma.square()).sqrt()
    return alpha / norm, sigma / norm


class EpsilonNet(nn.Module):
    """A tiny network: noisy latents, time and text -> noise."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(WIDTH, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.inner = nn.Linear(3, WIDTH)
        self.outer = nn.Linear(WIDTH, 3)

    def forward(self, x_BCHW: Tensor, time_B: Tensor, text_BTD: Tensor) -> Tensor:
        hidden = self.inner(x_BCHW.permute(0, 2, 3, 1)) + self.time(time_B[:, None])[:, None, None]
        hidden = torch.tanh(hidden + self.text(text_BTD.mean(1))[:, None, None])
        return self.outer(hidden).permute(0, 3, 1, 2)


class EpsilonBackbone(FlowBackbone):
    """Pictures are their own latents; prompts are random vectors, the same ones for the same text."""

    latent_shape = (3, 32, 32)
    targets = ("inner", "outer", "text")

    def __init__(self, device: str, compute: Compute = PLAIN, cache: Path | None = None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = EpsilonNet()
        super().__init__("epsilon", net.to(device), "epsilon-example-1", device, compute)

    def predict(self, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity at y, which is x here, and s, which is sigma here."""
        alpha, sigma = (part.view(-1, 1, 1, 1) for part in variance_preserving(sigma_B))
        noisy = x * (alpha + sigma)  # back to the model's own path
        eps = self.transformer(noisy, sigma.flatten(), conditioning["sequence"])
        return eps - (noisy - sigma * eps) / alpha

    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        for prompt in prompts:
            generator = torch.Generator().manual_seed(seed_of("epsilon", prompt))
            sequence = torch.randn(1, TOKENS, WIDTH, generator=generator).to(self.device)
            yield Conditioning({"sequence": sequence})

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return (latents_BCHW / 2 + 0.5).clamp(0, 1)

    def encode_pictures(self, images_BCHW: Tensor) -> Tensor:
        return 2 * images_BCHW - 1


def descriptor() -> Descriptor:
    """The tiny model; it draws in the micro world, so that micro's tasks can score it."""
    return Descriptor("epsilon", "micro", 1.0, EpsilonBackbone, lambda: "epsilon-example-1")
