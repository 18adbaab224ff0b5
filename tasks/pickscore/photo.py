"""PickScore itself: yuvalkirstain/PickScore_v1 with the processor it was trained with (arXiv 2305.01569)."""

from tasks.clip import BATCH, devices, with_processor
from tasks.pickscore.scorer import ClipScorer
from tasks.prompt_files import SOURCE

MODEL, PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
BOUNDS = (0.0, 26.0)
"""Published recipes train on the score over 26."""
MODELS = {
    "model": f"CLIP model; default {MODEL}",
    "processor": f"its tokenizer and image processor; default {PROCESSOR}",
}
SOURCES = SOURCE | MODELS | devices(BATCH)


def photo_scorer(sources: dict[str, str]) -> ClipScorer:
    """The scorer that `scorers.pickscore` describes."""
    return ClipScorer(with_processor(sources.get("model", MODEL), sources.get("processor", PROCESSOR), sources), BOUNDS)
