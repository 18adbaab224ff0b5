"""PickScore on photographs: yuvalkirstain/PickScore_v1 with the processor of its training (arXiv 2305.01569)."""

from tasks.clip import BATCH, devices, with_processor
from tasks.pickscore.scorer import ClipScorer
from tasks.prompt_files import SOURCE

MODEL, PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
BOUNDS = (0.0, 26.0)
"""Raw scores that become rewards of 0 and 1: published settings train on the score divided by 26."""
MODELS = {
    "model": f"CLIP model; default {MODEL}",
    "processor": f"tokenizer and image processor of the model; default {PROCESSOR}",
}
SOURCES = SOURCE | MODELS | devices(BATCH)


def photo_scorer(sources: dict[str, str]) -> ClipScorer:
    """The scorer that `scorers.pickscore` describes."""
    model, processor = sources.get("model", MODEL), sources.get("processor", PROCESSOR)
    return ClipScorer(with_processor(model, processor, sources), BOUNDS)
