"""Stability's SD3.5 models, as far as they are known without a download."""

from typing import Any

from bench.backbones.pipeline.family import Published

DEFAULT = "hub:stabilityai/stable-diffusion-3.5-medium"
MEDIUM: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": list(range(13)),
}  # fmt: skip
LARGE = MEDIUM | {
    "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
    "dual_attention_layers": [],
}  # fmt: skip
VAE: dict[str, Any] = {
    "sample_size": 1024, "latent_channels": 16, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
FROZEN = {
    "text_encoder": 123_650_304, "text_encoder_2": 694_659_840, "text_encoder_3": 4_762_310_656, "vae": 83_819_683,
}  # fmt: skip
"""Parameters of CLIP-L, CLIP-G, T5-XXL's encoder and the VAE."""
PUBLISHED = {
    DEFAULT: Published(MEDIUM, VAE, {"shift": 3.0}, FROZEN),
    "hub:stabilityai/stable-diffusion-3.5-large": Published(LARGE, VAE, {"shift": 3.0}, FROZEN),
}
"""Address on the hub -> what is known."""
