"""Convert an open_clip ViT-H/14 checkpoint (HPS_v2.1_compressed.pt) to transformers' CLIPModel.

python -m tasks.preference.open_clip_weights CHECKPOINT.pt FOLDER
"""

import re
from pathlib import Path

from torch import Tensor

from bench.errors import exit_on_error
from bench.weights.checkpoints import state_dict
from bench.weights.frozen import require_numbers
from tasks.preference.conversion import run_conversion, save_converted

VISION_HEAD, TEXT_HEAD = 80, 64
"""Width of an attention head in ViT-H/14, which cannot be read from the weights."""
RENAMED = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^text_projection$", "text_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors with transformers' names; queries, keys and values are separate."""
    found = {}
    for key, value in state.items():
        for pattern, name in RENAMED:
            key = re.sub(pattern, name, key)
        match = re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", key)
        if match:
            for part, tensor in zip("qkv", value.chunk(3)):
                found[f"{match[1]}.self_attn.{part}_proj.{match[2]}"] = tensor
        else:
            found[key] = value.T if key in TRANSPOSED else value
    return {key: value.float().contiguous() for key, value in found.items()}


def architecture(state: dict[str, Tensor]):
    """The CLIPConfig that follows from the shapes in an open_clip state dict."""
    from transformers import CLIPConfig

    def tower(prefix: str, head: int) -> dict[str, object]:
        pattern = re.compile(rf"{re.escape(prefix)}resblocks\.(\d+)\.")
        blocks = {match[1] for match in map(pattern.match, state) if match}
        inner, width = state[f"{prefix}resblocks.0.mlp.c_fc.weight"].shape
        return {
            "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": len(blocks),
            "num_attention_heads": width // head, "hidden_act": "gelu",
        }  # fmt: skip

    # open_clip's tokenizer has the start and end tokens last in its vocabulary.
    words, positions = state["token_embedding.weight"].shape[0], state["positional_embedding"].shape[0]
    text = {
        "vocab_size": words, "max_position_embeddings": positions,
        "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": 0,
    }  # fmt: skip
    patch = state["visual.conv1.weight"].shape[-1]
    side = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    return CLIPConfig(
        text_config=tower("transformer.", TEXT_HEAD) | text,
        vision_config=tower("visual.transformer.", VISION_HEAD) | {"patch_size": patch, "image_size": side * patch},
        projection_dim=state["text_projection"].shape[1],
    )


def convert(checkpoint: Path, folder: Path) -> None:
    """Write a transformers folder. Raises MissingError or DamagedError for a file that is not such a checkpoint."""
    from transformers import CLIPModel

    what = "open_clip ViT-H/14 checkpoint"
    state = {key.removeprefix("module."): value for key, value in state_dict(checkpoint, what).items()}
    state.pop("attn_mask", None)  # a constant in some files; its infinities would be refused below
    require_numbers(state, checkpoint)

    def build() -> CLIPModel:
        model = CLIPModel(architecture(state))
        model.load_state_dict(converted(state))
        return model

    save_converted(build, checkpoint, what, folder)


def main() -> None:
    """Parse the command line and convert the checkpoint."""
    run_conversion(convert, __doc__.splitlines()[0], "open_clip checkpoint file, HPS_v2.1_compressed.pt")


if __name__ == "__main__":
    exit_on_error(main)
