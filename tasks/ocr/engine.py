"""The real OCR engine: RapidOCR with its bundled PP-OCR models, one thread."""

from functools import cache

import numpy as np
from torch import Tensor

from bench.pictures import to_bytes

ENGINE = "rapidocr-3.10.0"
"""Pinned in pyproject.toml: the package brings its models."""
MIN_SIDE = 128
"""Smaller pictures are enlarged (bicubic) to this side: the detector was not made for postage stamps."""


@cache
def _engine():
    import logging

    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    return RapidOCR(params={"Global.log_level": "error", "Global.use_cls": False})


def read_with_rapidocr(images_BCHW: Tensor) -> list[str]:
    """Text lines of each picture [B, 3, H, W] in [0, 1], joined without separators; '' when none is found."""
    from PIL import Image

    texts = []
    for image in to_bytes(images_BCHW):
        picture = Image.fromarray(image)
        if min(picture.size) < MIN_SIDE:
            factor = MIN_SIDE / min(picture.size)
            picture = picture.resize([round(side * factor) for side in picture.size], Image.Resampling.BICUBIC)
        # RapidOCR reads arrays as BGR.
        texts.append("".join(_engine()(np.asarray(picture)[..., ::-1]).txts or ()))
    return texts
