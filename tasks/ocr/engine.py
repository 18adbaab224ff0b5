"""The OCR engine for photographs: RapidOCR with its bundled PP-OCR models, one image per core."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from bench.scoring.pictures import to_bytes
from bench.system.workers import launched

if TYPE_CHECKING:
    from torch import Tensor

ENGINE = "rapidocr-3.10.0"
"""Pinned in pyproject.toml, as the package contains the models."""
MIN_SIDE = 128
"""Images with a shorter side are enlarged to it (bicubic), because the text detector fails on very small images."""


@cache
def _engine():
    import logging

    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    # One thread per network: on such small inputs more threads would mostly wait for each other.
    return RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def cores() -> int:
    """Number of threads for this process.

    Its cores are divided among the run's processes on this machine. A process that is alone also respects
    OMP_NUM_THREADS; otherwise that is ignored, because launchers of several processes set it to 1.
    """
    mine = len(os.sched_getaffinity(0))
    together = launched("LOCAL_WORLD_SIZE", 1)
    if together > 1:
        return max(1, mine // together)
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdecimal() and int(wanted):
        return min(mine, int(wanted))
    return mine


def read_with_rapidocr(images_BCHW: Tensor) -> list[str]:
    """Text of each image [B, 3, H, W] in [0, 1]: its lines joined without separators, '' if none is found."""
    images = images_BCHW.cpu()
    _engine()  # built here once, so that threads do not build it several times
    threads = min(cores(), len(images))
    if threads <= 1:
        return [_read(image) for image in images]
    # The networks release the GIL, and one engine serves all threads because it keeps no state between images.
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_read, images))


def _read(image_CHW: Tensor) -> str:
    from PIL import Image

    picture = Image.fromarray(to_bytes(image_CHW))
    if min(picture.size) < MIN_SIDE:
        factor = MIN_SIDE / min(picture.size)
        size = [round(side * factor) for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    bgr = np.asarray(picture)[..., ::-1]  # the channel order that RapidOCR expects
    return "".join(_engine()(bgr).txts or ())
