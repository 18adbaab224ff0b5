"""The backbone of a drawn world, loaded from the weights in the package."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.backbones.conditioning import Conditioning
from bench.backbones.micro.codec import CHANNELS, PatchCodec
from bench.backbones.micro.files import weight_files
from bench.backbones.micro.text import TextEncoder
from bench.backbones.micro.tokens import Tokenizer
from bench.backbones.micro.world import CANVAS, CELL
from bench.backbones.micro.worlds import DrawnWorld
from bench.backbones.pipeline.called import FamilyBackbone
from bench.backbones.sd3 import SD3, Sd3Fields
from bench.config.compute import PLAIN, Compute
from bench.errors import UsageError
from bench.hashing import content_hash


class MicroBackbone(FamilyBackbone):
    """A tiny SD3Transformer2DModel with its own text encoder and a linear codec."""

    latent_shape = (CHANNELS, CANVAS // CELL, CANVAS // CELL)

    def __init__(self, world: DrawnWorld, device: str, compute: Compute = PLAIN):
        from diffusers import SD3Transformer2DModel
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = world.base
        world.require(folder / "codec.safetensors")
        try:
            transformer = SD3Transformer2DModel.from_pretrained(
                folder / "transformer", dtype=getattr(torch, compute.precision)
            )
            text, codec = load_file(folder / "text.safetensors"), load_file(folder / "codec.safetensors")
        except (SafetensorError, OSError) as error:
            raise UsageError(f"corrupt weights file in {folder}: {error}") from error
        self._of(SD3, Sd3Fields.model_validate(dict(transformer.config)), None, device)
        self._folder = folder
        super().__init__(world.name, transformer, content_hash(weight_files(folder)), device, compute)
        self.tokenizer = Tokenizer(world.shapes)
        self.text = TextEncoder(self.tokenizer.size)
        self.text.load_state_dict({k: v.float() for k, v in text.items()})
        self.codec = PatchCodec()
        self.codec.load_state_dict(codec)
        self.requires_grad_(False).to(self.device)

    def exact_weights(self) -> dict[str, Tensor]:
        """As stored, in float32."""
        from diffusers import SD3Transformer2DModel

        return dict(SD3Transformer2DModel.from_pretrained(self._folder / "transformer").named_parameters())

    def _encode(self, prompts: list[str]) -> Iterator[Conditioning]:
        for prompt in prompts:
            sequence, pooled = self.text(self.tokenizer([prompt]).to(self.device))
            yield Conditioning({"sequence": sequence, "pooled": pooled})

    def encode_pictures(self, images_BCHW: Tensor) -> Tensor:
        """Images [B, 3, 32, 32] in [0, 1] -> latents [B, 64, 4, 4]."""
        return self.codec.encode(images_BCHW.float())

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Latents [B, 64, 4, 4] -> images [B, 3, 32, 32], float32 in [0, 1]."""
        return self.codec.decode(latents_BCHW.float())
