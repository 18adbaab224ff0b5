"""Convert ImageReward.pt to transformers' BLIP with ImageReward's head.

python -m tasks.preference.imagereward_weights CHECKPOINT.pt FOLDER
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.errors import exit_on_error
from bench.weights.checkpoints import state_dict
from bench.weights.frozen import NEVER_SAVED, require_numbers
from tasks.preference.conversion import run_conversion, save_converted
from tasks.preference.imagereward import ADDED, model_class

HEAD = 64
"""Width of an attention head in ViT-L/16 and in BERT, which cannot be read from the weights."""
VISION_EPSILON = 1e-6
"""Of the layer norms in the image encoder. The text encoder has transformers' default, 1e-12."""
USED = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")
"""Beginnings of the names of the tensors that a score depends on. The others are BLIP's projections."""
RENAMED = (
    (r"^blip\.text_encoder\.", "text_encoder."),
    (r"^blip\.visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"vision_model.encoder.layers.\1.self_attn.projection."),
    (r"^blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    # Dropout has an index in the released head but none here.
    (r"^mlp\.layers\.0\.", "head.0."),
    (r"^mlp\.layers\.2\.", "head.1."),
    (r"^mlp\.layers\.4\.", "head.2."),
    (r"^mlp\.layers\.6\.", "head.3."),
    (r"^mlp\.layers\.7\.", "head.4."),
)


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released tensors in float32 with the names of the converted model."""
    found = {}
    for key, value in state.items():
        for pattern, name in RENAMED:
            key = re.sub(pattern, name, key)
        found[key] = value.float().contiguous()
    return found


def architecture(state: dict[str, Tensor]):
    """The BlipConfig that follows from the shapes in the released tensors."""
    from transformers import BlipConfig

    def tower(prefix: str, inner: str) -> dict[str, int]:
        pattern = re.compile(rf"{re.escape(prefix)}(\d+)\.")
        blocks = {match[1] for match in map(pattern.match, state) if match}
        hidden, width = state[f"{prefix}0.{inner}.weight"].shape
        return {
            "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": len(blocks),
            "num_attention_heads": width // HEAD,
        }  # fmt: skip

    words = state["blip.text_encoder.embeddings.word_embeddings.weight"].shape[0]
    positions = state["blip.text_encoder.embeddings.position_embeddings.weight"].shape[0]
    text = {"vocab_size": words, "max_position_embeddings": positions, "bos_token_id": words - len(ADDED)}
    patch = state["blip.visual_encoder.patch_embed.proj.weight"].shape[-1]
    side = round((state["blip.visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    vision = {"patch_size": patch, "image_size": side * patch, "layer_norm_eps": VISION_EPSILON}
    return BlipConfig(
        text_config=tower("blip.text_encoder.encoder.layer.", "intermediate.dense") | text,
        vision_config=tower("blip.visual_encoder.blocks.", "mlp.fc1") | vision,
    )


def convert(checkpoint: Path, folder: Path) -> None:
    """Write a transformers folder. Raises MissingError or DamagedError for a file that is not such a checkpoint."""
    what = "ImageReward checkpoint"
    state = state_dict(checkpoint, what)
    state = {key: value for key, value in state.items() if key.startswith(USED) and not NEVER_SAVED.search(key)}
    require_numbers(state, checkpoint)

    def build() -> Any:
        model = model_class()(architecture(state))
        model.load_state_dict(converted(state))
        return model

    save_converted(build, checkpoint, what, folder)


def main() -> None:
    """Parse the command line and convert the checkpoint."""
    run_conversion(convert, __doc__.splitlines()[0], "released checkpoint file, ImageReward.pt")


if __name__ == "__main__":
    exit_on_error(main)
