"""Convert GenEval's detector from mmdet's checkpoint: python -m tasks.geneval.mmdet_weights CHECKPOINT.pth FOLDER

The official evaluator's Mask2Former (Swin-S, COCO instances, trained with mmdet 2.x) is written as a folder that
transformers' Mask2FormerForUniversalSegmentation loads. Only names and two layouts differ. mmdet stores query, key and
value in one matrix, and its patch merging orders the channels of a 2x2 patch channel by channel where transformers goes
pixel by pixel. mmdet 3 distributes the same weights under different names, which are accepted too; images are still
preprocessed as in mmdet 2.x, which the official evaluator uses.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.errors import DamagedError, UsageError, exit_on_error
from bench.weights.checkpoints import cause_of, state_dict
from bench.weights.frozen import names_of, require_numbers, save_folder
from tasks.geneval.canary import expectations, keep
from tasks.geneval.detector import UNREAD, Mask2FormerDetector, require_coco

OFFICIAL = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
"""The official evaluator's file, from mmdet 2.x (folder v2.0 of OpenMMLab's downloads)."""
WHAT = "mmdet Mask2Former checkpoint"
SWIN = "model.pixel_level_module.encoder"
PIXELS = "model.pixel_level_module.decoder"
QUERIES = "model.transformer_module"
FEED_FORWARD = [(r"ffns\.0\.layers\.0\.0", "fc1"), (r"ffns\.0\.layers\.1", "fc2")]
Renames = list[tuple[str, str | Callable[[re.Match[str]], str]]]
SECTIONS: dict[str, tuple[str, Renames]] = {
    "backbone": (SWIN, [
        (r"patch_embed\.projection", "embeddings.patch_embeddings.projection"),
        (r"patch_embed\.norm", "embeddings.norm"),
        (r"^norm(\d)", lambda m: f"hidden_states_norms.stage{int(m[1]) + 1}"),
        (r"^stages", "encoder.layers"),
        (r"\.norm1", ".layernorm_before"),
        (r"\.norm2", ".layernorm_after"),
        (r"attn\.w_msa\.proj", "attention.output.dense"),
        (r"attn\.w_msa", "attention.self"),
        (r"ffn\.layers\.0\.0", "intermediate.dense"),
        (r"ffn\.layers\.1", "output.dense"),
    ]),
    "panoptic_head.pixel_decoder": (PIXELS, [
        (r"input_convs", "input_projections"),
        (r"lateral_convs\.0", "adapter_1"),
        (r"output_convs\.0", "layer_1"),
        (r"\.conv\.", ".0."),
        (r"\.gn\.", ".1."),
        (r"mask_feature", "mask_projection"),
        (r"level_encoding\.weight", "level_embed"),
        (r"attentions\.0", "self_attn"),
        (r"norms\.0", "self_attn_layer_norm"),
        (r"norms\.1", "final_layer_norm"),
        *FEED_FORWARD,
    ]),
    "panoptic_head.transformer_decoder": (f"{QUERIES}.decoder", [
        (r"attentions\.0\.attn", "cross_attn"),
        (r"attentions\.1\.attn", "self_attn"),
        (r"norms\.0", "cross_attn_layer_norm"),
        (r"norms\.1", "self_attn_layer_norm"),
        (r"norms\.2", "final_layer_norm"),
        (r"post_norm", "layernorm"),
        *FEED_FORWARD,
    ]),
    "panoptic_head.cls_embed": ("class_predictor", []),
    "panoptic_head": (QUERIES, [
        (r"query_embed", "queries_embedder"),
        (r"query_feat", "queries_features"),
        (r"mask_embed\.(\d)", lambda m: f"decoder.mask_predictor.mask_embedder.{int(m[1]) // 2}.0"),
    ]),
}  # fmt: skip
"""mmdet's module -> the module in transformers' published checkpoints, and the renamings inside it, in order."""
DERIVED = ("relative_position_index", "loss_cls", "class_weight", "data_preprocessor.")
"""Entries that are not learned parameters."""
VERSION_3 = [
    (r"^(panoptic_head\.pixel_decoder\.encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"^(panoptic_head\.transformer_decoder\.layers\.\d+)\.cross_attn\.", r"\1.attentions.0."),
    (r"^(panoptic_head\.transformer_decoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.1."),
    (r"^(panoptic_head\..*\.layers\.\d+)\.ffn\.", r"\1.ffns.0."),
]
"""mmdet 3's names -> mmdet 2.x's; all others are the same."""


def renamed(key: str) -> str:
    """The transformers name of an mmdet parameter; a parameter outside the known modules keeps its name."""
    # SECTIONS lists the parts of panoptic_head before panoptic_head itself, so that the first match is the right one.
    for theirs, (ours, inside) in SECTIONS.items():
        if key.startswith(f"{theirs}."):
            name = key.removeprefix(f"{theirs}.")
            for pattern, replacement in inside:
                name = re.sub(pattern, replacement, name)
            return f"{ours}.{name}"
    return key


def named_as_version_2(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """A state dict with mmdet 2.x's names, and whether its names were mmdet 3's."""

    def older(key: str) -> str:
        for pattern, name in VERSION_3:
            key = re.sub(pattern, name, key)
        return key

    found = {older(key): value for key, value in state.items()}
    return found, found.keys() != state.keys()


def pixel_by_pixel(merged: Tensor) -> Tensor:
    """Reorder the last axis [4 C] of patch merging: from (channel, row, column) to (column, row, channel)."""
    patches = merged.unflatten(-1, (-1, 2, 2))
    return patches.movedim((-3, -2, -1), (-1, -2, -3)).flatten(-3)


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An mmdet state dict in transformers' names and layouts."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if any(name in key for name in DERIVED):
            continue
        name = renamed(key)
        if ".downsample." in name:
            found[name] = pixel_by_pixel(value)
        elif match := re.fullmatch(r"(.*\.attention\.self\.)qkv\.(weight|bias)", name):
            for part, piece in zip(("query", "key", "value"), value.chunk(3)):
                found[f"{match[1]}{part}.{match[2]}"] = piece
        elif match := re.fullmatch(r"(.*\.self_attn\.)in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", value.chunk(3)):
                found[f"{match[1]}{part}_proj.{match[2]}"] = piece
        else:
            found[name] = value
    return {name: value.contiguous() for name, value in found.items()}


def architecture(state: dict[str, Tensor]):
    """The Mask2FormerConfig that follows from the shapes in an mmdet state dict."""
    from transformers import Mask2FormerConfig, SwinConfig

    def count(pattern: str) -> int:
        matches = [re.match(pattern, key) for key in state]
        return len({match[1] for match in matches if match})

    stages = range(count(r"backbone\.stages\.(\d+)\."))
    tables = [state[f"backbone.stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table"] for i in stages]
    hidden = state["panoptic_head.query_feat.weight"].shape[1]
    encoder = "panoptic_head.pixel_decoder.encoder.layers"
    points = 3 * 4  # levels x points of the deformable attention, fixed in transformers
    swin = SwinConfig(  # type: ignore[call-arg]  # a field in its types, an argument where it is read
        embed_dim=state["backbone.patch_embed.projection.weight"].shape[0],
        depths=[count(rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in stages],
        num_heads=[table.shape[1] for table in tables],
        window_size=(round(tables[0].shape[0] ** 0.5) + 1) // 2,
        out_features=[f"stage{i + 1}" for i in stages],
    )
    return Mask2FormerConfig(  # type: ignore[call-arg]  # the base class takes num_labels
        backbone_config=swin,
        feature_size=hidden,
        mask_feature_size=state["panoptic_head.pixel_decoder.mask_feature.weight"].shape[0],
        hidden_dim=hidden,
        encoder_feedforward_dim=state[f"{encoder}.0.ffns.0.layers.0.0.bias"].shape[0],
        encoder_layers=count(r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\."),
        dim_feedforward=state["panoptic_head.transformer_decoder.layers.0.ffns.0.layers.0.0.bias"].shape[0],
        decoder_layers=count(r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.") + 1,
        num_attention_heads=state[f"{encoder}.0.attentions.0.attention_weights.bias"].shape[0] // points,
        num_queries=state["panoptic_head.query_feat.weight"].shape[0],
        num_labels=state["panoptic_head.cls_embed.bias"].shape[0] - 1,
    )


def convert(checkpoint: Path, folder: Path) -> bool:
    """Write a transformers folder; returns whether the checkpoint has mmdet 3's names.

    Raises MissingError or DamagedError for a file that is not such a checkpoint, UsageError for a folder that cannot be
    written.
    """
    state, version_3 = named_as_version_2(state_dict(checkpoint, WHAT))
    of = " of mmdet 3" if version_3 else ""
    hint = f"the official evaluator's file is {OFFICIAL}"
    try:
        config, tensors = architecture(state), converted(state)
    except KeyError as error:
        raise DamagedError(f"{checkpoint} is not a valid {WHAT}{of}: it lacks {error.args[0]!r}; {hint}") from error
    except (IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DamagedError(f"{checkpoint} is not a valid {WHAT}{of}: {cause_of(error)}; {hint}") from error
    require_numbers(tensors, checkpoint)
    require_coco(config.id2label, str(checkpoint))
    source = f"{checkpoint}, a file{of}," if version_3 else str(checkpoint)
    save_folder(_model(config, tensors, source, hint), folder)
    return version_3


def _model(config, tensors: dict[str, Tensor], source: str, hint: str):
    """The Mask2Former with the converted tensors. Raises DamagedError if they do not fit it exactly."""
    import transformers
    from transformers import Mask2FormerForUniversalSegmentation

    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # mismatches become an error below
    try:
        loaded: tuple[Mask2FormerForUniversalSegmentation, dict[str, Any]]
        loaded = Mask2FormerForUniversalSegmentation.from_pretrained(  # type: ignore[assignment]  # its types know no report
            None, config=config, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except RuntimeError as error:
        raise DamagedError(f"{source} does not fit transformers' Mask2Former: {cause_of(error)}; {hint}") from error
    finally:
        transformers.utils.logging.set_verbosity(before)
    model, report = loaded
    missing = [key for key in report["missing_keys"] if not UNREAD.search(key)]
    reshaped = names_of(report["mismatched_keys"])
    wrong = {"missing": missing, "unknown": report["unexpected_keys"], "of a different shape": reshaped}
    if any(wrong.values()):
        found = ", ".join(f"{kind}: {sorted(map(str, keys))[0]!r}" for kind, keys in wrong.items() if keys)
        raise DamagedError(f"{source} does not fit transformers' Mask2Former ({found}); {hint}")
    return model


def main() -> None:
    """Parse the command line, convert the checkpoint, and keep a canary if one is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help=f"mmdet checkpoint file; officially {OFFICIAL}")
    parser.add_argument("folder", type=Path, help="folder for the converted model")
    canary_help = "image with known objects, on which the detector is checked before every scoring run"
    parser.add_argument("--canary", type=Path, help=canary_help)
    parser.add_argument("--objects", help="objects in the canary, as cat=2,tv remote=2 (GenEval's or COCO's names)")
    arguments = parser.parse_args()
    if (arguments.canary is None) != (arguments.objects is None):
        raise UsageError("--canary and --objects must be given together")
    wanted = expectations(arguments.objects) if arguments.canary else {}
    if convert(arguments.checkpoint, arguments.folder):
        print("the file is from mmdet 3; images are preprocessed as in mmdet 2.x, which the official evaluator uses")
    if arguments.canary:
        keep(Mask2FormerDetector(str(arguments.folder), "hf-converted"), arguments.canary, wanted, arguments.folder)
    print(f"converted: {arguments.folder}")


if __name__ == "__main__":
    exit_on_error(main)
