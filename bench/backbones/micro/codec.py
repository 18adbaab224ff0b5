"""A fixed linear codec between 32x32 images and 64x4x4 latents: PCA of 8x8 patches, partly whitened."""

import numpy as np
import torch
from torch import Tensor, nn

PATCH = 8
CHANNELS = 64
WHITENING = 0.6
"""Exponent on each component's standard deviation: 0 keeps the scale of PCA, 1 whitens fully."""


class PatchCodec(nn.Module):
    """Encodes and decodes images patch by patch, with one matrix multiplication. Frozen; all state is in buffers."""

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, channels: int = CHANNELS):
        super().__init__()
        width = 3 * PATCH * PATCH
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("basis", torch.zeros(width, channels))
        self.register_buffer("scale", torch.ones(channels))

    @staticmethod
    def fit(images_NHWC: np.ndarray, channels: int = CHANNELS) -> "PatchCodec":
        """A codec fitted to images [N, H, W, 3] in [0, 1]."""
        codec = PatchCodec(channels)
        images_NCHW = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float()
        patches = codec._patches(images_NCHW).flatten(0, 1).double()
        mean = patches.mean(0)
        centred = patches - mean
        eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        order = eigenvalues.argsort(descending=True)[:channels]
        deviation = eigenvalues[order].sqrt()
        scale = deviation**WHITENING
        scale *= (deviation / scale).square().mean().sqrt()  # makes the latents' mean square 1
        codec.mean.copy_(mean)
        codec.basis.copy_(vectors[:, order])
        codec.scale.copy_(scale)
        return codec

    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] -> latents [B, C, H/8, W/8]."""
        side = images_BCHW.shape[-1] // PATCH
        latents = ((self._patches(images_BCHW) - self.mean) @ self.basis) / self.scale
        return latents.mT.unflatten(-1, (-1, side))

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> images [B, 3, 8h, 8w], clamped to [0, 1]."""
        height, width = latents_BCHW.shape[-2:]
        patches = (latents_BCHW.flatten(2).mT * self.scale) @ self.basis.mT + self.mean
        patches = patches.view(-1, height, width, 3, PATCH, PATCH)
        grid = patches.permute(0, 3, 1, 4, 2, 5)  # image, channel, row of patches, row, column of patches, column
        return grid.reshape(-1, 3, height * PATCH, width * PATCH).clamp(0, 1)

    @staticmethod
    def _patches(images_BCHW: Tensor) -> Tensor:
        return torch.nn.functional.unfold(images_BCHW, PATCH, stride=PATCH).mT
