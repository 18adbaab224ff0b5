"""LAION's aesthetic predictor: a small head on CLIP ViT-L/14's picture embedding
(github.com/christophschuhmann/improved-aesthetic-predictor, Apache-2.0)."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import MissingError, UsageError, one_line
from bench.hashing import content_hash
from tasks.clip import with_processor

MODEL = "openai/clip-vit-large-patch14"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
MODELS = {"model": f"CLIP model; default {MODEL}", "head": f"the predictor's weights file, {HEAD}"}
LAYERS = (0, 2, 4, 6, 7)
"""Places of the linear layers; between them lies dropout alone, no nonlinearity."""


class AestheticJudge:
    """Predicted mean rating, about 1 to 10; the prompt does not matter."""

    metric = "aesthetic"
    ceiling = 10.0

    def __init__(self, sources: dict[str, str]):
        if "head" not in sources:
            raise MissingError(
                f"the aesthetic score needs its head: name the file {HEAD} (3.7 MB, "
                "github.com/christophschuhmann/improved-aesthetic-predictor) as head"
            )
        model = sources.get("model", MODEL)
        self.head_file, self.clip = Path(sources["head"]), with_processor(model, model, sources)

    @cached_property
    def name(self) -> str:
        if not self.head_file.is_file():
            raise MissingError(f"no aesthetic head at {self.head_file}")
        return f"aesthetic-{content_hash([self.head_file])}-clip-{self.clip.name}"

    @cached_property
    def head(self) -> nn.Sequential:
        return read_head(self.head_file).to(self.clip.device)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        return self.head(self.clip.images(images_BCHW)).squeeze(1).double().cpu().numpy()


def read_head(path: Path) -> nn.Sequential:
    """The head from a .pth or .safetensors file. Raises MissingError or UsageError."""
    if not path.is_file():
        raise MissingError(f"no aesthetic head at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        layers = []
        for place in LAYERS:
            weight, bias = (state[f"layers.{place}.{kind}"].float() for kind in ("weight", "bias"))
            layers.append(nn.Linear(weight.shape[1], weight.shape[0]))
            layers[-1].load_state_dict({"weight": weight, "bias": bias})
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise UsageError(f"{path} is no aesthetic head: {one_line(error)}") from error
    return nn.Sequential(*layers).requires_grad_(False)
