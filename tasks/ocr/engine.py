"""The real OCR engine: RapidOCR with its bundled PP-OCR models, a picture a core."""

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
"""Pinned in pyproject.toml: the package brings its models."""
MIN_SIDE = 128
"""Smaller pictures are enlarged (bicubic) to this side: the detector was not made for postage stamps."""


@cache
def _engine():
    import logging

    from rapidocr import RapidOCR

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    # Its networks take a thread each: the threads of one picture would wait for each other more than they compute.
    return RapidOCR(
        params={
            "Global.log_level": "error",
            "Global.use_cls": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def cores() -> int:
    """Threads that this process may keep busy: its cores, shared with the processes of its run on this machine, and no
    more than OMP_NUM_THREADS where it is alone (a launcher of several sets that to 1 for all of them)."""
    mine = len(os.sched_getaffinity(0))
    together = launched("LOCAL_WORLD_SIZE", 1)
    if together > 1:
        return max(1, mine // together)
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(mine, int(wanted)) if wanted.isdecimal() and int(wanted) else mine


def read_with_rapidocr(images_BCHW: Tensor) -> list[str]:
    """Text lines of each picture [B, 3, H, W] in [0, 1], joined without separators; '' when none is found."""
    images = images_BCHW.cpu()
    _engine()  # made once, before threads ask for it
    if (threads := min(cores(), len(images))) <= 1:
        return [_read(image) for image in images]
    # The networks run outside Python's lock, and one engine serves all threads: it keeps nothing of a picture.
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_read, images))


def _read(image_CHW: Tensor) -> str:
    from PIL import Image

    picture = Image.fromarray(to_bytes(image_CHW))
    if min(picture.size) < MIN_SIDE:
        factor = MIN_SIDE / min(picture.size)
        picture = picture.resize([round(side * factor) for side in picture.size], Image.Resampling.BICUBIC)
    # RapidOCR reads arrays as BGR.
    return "".join(_engine()(np.asarray(picture)[..., ::-1]).txts or ())
