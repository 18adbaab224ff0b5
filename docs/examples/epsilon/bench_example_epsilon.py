"""A backbone that predicts noise on a variance-preserving path, as Stable Diffusion 1.5 does.

With y = x / (alpha + sigma) and s = sigma / (alpha + sigma) such a model is a rectified flow: y = (1 - s) x0 + s eps
with the velocity eps - x0. All kernels and methods then apply unchanged; `ode` is DDIM at eta 0.
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
from bench.sampler.levels import FlowLevels

WIDTH, TOKENS = 32, 4
LEAST_ALPHA = 1e-3
"""Lower bound of alpha, so that x0 = (x - sigma eps) / alpha is defined at pure noise."""


def variance_preserving(s_B: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma), each [B], with alpha^2 + sigma^2 = 1 and s = sigma / (alpha + sigma), for s [B] in [0, 1]."""
    alpha, sigma = (1 - s_B).clamp_min(LEAST_ALPHA), s_B
    norm = (alpha.square() + sigma.square()).sqrt()
    return alpha / norm, sigma / norm


class EpsilonNet(nn.Module):
    """A tiny network that predicts noise from noisy latents, time and text."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(WIDTH, WIDTH)
        self.time = nn.Linear(1, WIDTH)
        self.inner = nn.Linear(3, WIDTH)
        self.outer = nn.Linear(WIDTH, 3)

    def forward(self, x_BCHW: Tensor, time_B: Tensor, text_BTD: Tensor) -> Tensor:
        """Predicted noise [B, 3, H, W]; `text_BTD` are the embedded prompts."""
        time = self.time(time_B[:, None])[:, None, None]
        hidden = self.inner(x_BCHW.permute(0, 2, 3, 1)) + time
        hidden = torch.tanh(hidden + self.text(text_BTD.mean(1))[:, None, None])
        return self.outer(hidden).permute(0, 3, 1, 2)


class EpsilonBackbone(FlowBackbone):
    """Latents are images scaled to [-1, 1]; a prompt is encoded as random vectors that depend only on its text."""

    latent_shape = (3, 32, 32)
    targets = ("inner", "outer", "text")

    def __init__(self, device: str, compute: Compute = PLAIN, cache: Path | None = None):
        # The weights come from a fixed seed, and the caller's random state must not change.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = EpsilonNet()
        super().__init__("epsilon", net.to(device), "epsilon-example-1", device, compute)

    def predict(self, network: nn.Module, x: Tensor, sigma_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity eps - x0 at the flow's state and level, called y and s above: x is y, and sigma_B is s."""
        alpha, sigma = (part.view(-1, 1, 1, 1) for part in variance_preserving(sigma_B))
        noisy = x * (alpha + sigma)  # on the variance-preserving path, where the network predicts noise
        eps = network(noisy, sigma.flatten(), conditioning["sequence"])
        return eps - (noisy - sigma * eps) / alpha

    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        for prompt in prompts:
            generator = torch.Generator().manual_seed(seed_of("epsilon", prompt))
            sequence = torch.randn(1, TOKENS, WIDTH, generator=generator).to(self.device)
            yield Conditioning({"sequence": sequence})

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]."""
        return (latents_BCHW / 2 + 0.5).clamp(0, 1)

    def encode_pictures(self, images_BCHW: Tensor) -> Tensor:
        """Latents [B, 3, H, W] of images in [0, 1]."""
        return 2 * images_BCHW - 1


def descriptor() -> Descriptor:
    """Descriptor of the tiny model. Its world is micro, so that micro's tasks can score it."""
    return Descriptor("epsilon", "micro", FlowLevels(), EpsilonBackbone, lambda: "epsilon-example-1")
