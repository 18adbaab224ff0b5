"""DrawBench: prompts that are never trained on, scored by a choice of preference judges."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.task import Prompt, Scores, Task
from bench.errors import MissingError, UsageError, unknown
from bench.weights.frozen import PRECISIONS
from tasks.bounds import clipped
from tasks.clip import BATCH, DEVICES, devices
from tasks.preference import hpsv3
from tasks.preference.judges import JUDGES, Judge
from tasks.prompt_files import read_lines
from tasks.vision.judge import check_key

if TYPE_CHECKING:
    from torch import Tensor


class DrawBench(Task):
    """Out-of-domain prompts. Reward: mean over judges of the score in the judge's bounds, clipped to [0, 1]."""

    name = "drawbench"
    version = "2"
    splits = ("test",)
    headline = "reward"
    sources: ClassVar[dict[str, str]] = {
        "prompts": "file with one prompt per line; repeat a line for several images of a prompt",
        "judges": f"comma-separated choice of {', '.join(JUDGES)}; default pickscore",
        **{
            f"{judge}_{key}": meaning
            for judge, kind in JUDGES.items()
            for key, meaning in kind.sources.items()
            if key not in DEVICES
        },
        **devices(BATCH),
        "precision": f"{', '.join(PRECISIONS)}; default: float32, but bfloat16 for hpsv3",
        "batch": f"images per forward of every judge; default {BATCH}, but {hpsv3.BATCH} for hpsv3",
    }

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        # Refuses every other world: the judges score photographs.
        self.world_entry({"photo": None})
        self.named = [part.strip() for part in self.given.get("judges", "pickscore").split(",")]
        for name in self.named:
            if name not in JUDGES:
                raise unknown("judge", name, JUDGES)
            check_key(f"scorers.{self.name}", self.given, f"{name}_key")

    @cached_property
    def judges(self) -> list[Judge]:
        """The chosen judges, built at first use, each with the settings that start with its name."""
        shared = {key: self.given[key] for key in DEVICES if key in self.given}
        return [JUDGES[name].build(self._settings_of(name) | shared) for name in self.named]

    def _settings_of(self, judge: str) -> dict[str, str]:
        prefix = f"{judge}_"
        return {key.removeprefix(prefix): value for key, value in self.given.items() if key.startswith(prefix)}

    @cached_property
    def _test(self) -> list[Prompt]:
        if "prompts" not in self.given:
            raise MissingError(
                "DrawBench's prompts come from a file: set scorers.drawbench.prompts=FILE, with one prompt per line "
                "(github.com/yifan123/flow_grpo has dataset/drawbench/test.txt)"
            )
        return [Prompt(text) for text in read_lines(Path(self.given["prompts"]))]

    def prompts(self, split: str) -> list[Prompt]:
        """The test prompts. Raises UsageError for any other split, MissingError if no file is set."""
        if split != "test":
            raise UsageError(f"DrawBench has test prompts only, no {split} prompts: use it with bench eval")
        return self._test

    @property
    def scorer_name(self) -> str:
        """Version of the task and the names of its judges."""
        judges = "+".join(judge.name for judge in self.judges)
        return f"{self.name}-{self.version}+{judges}"

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The mean reward over judges, with each judge's raw score as a metric."""
        texts = [p.text for p in prompts]
        raw = {judge.metric: judge(images_BCHW, texts) for judge in self.judges}
        shares = [clipped(raw[judge.metric], judge.bounds) for judge in self.judges]
        return Scores(np.mean(shares, 0), raw)
