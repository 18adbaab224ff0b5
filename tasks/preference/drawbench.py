"""DrawBench: prompts that nothing here trains on, judged by every preference score that is named."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.api.task import Prompt, Scores, Task
from bench.errors import MissingError, UsageError, unknown
from tasks.clip import BATCH, DEVICES, devices
from tasks.preference.judges import JUDGES, Judge
from tasks.prompt_files import read_lines

if TYPE_CHECKING:
    from torch import Tensor


class DrawBench(Task):
    """Out-of-domain prompts. Reward: mean over the judges of their scores over their ceilings."""

    name = "drawbench"
    version = "2"
    headline = "reward"
    sources: ClassVar[dict[str, str]] = {
        "prompts": "file with one prompt a line; a line that comes again is another picture of it",
        "judges": f"comma-separated, of {', '.join(JUDGES)}; default pickscore",
        **{
            f"{judge}_{key}": meaning
            for judge, kind in JUDGES.items()
            for key, meaning in kind.sources.items()
            if key not in DEVICES
        },
        **devices(BATCH),
    }

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.world_entry({"photo": None})
        self.named = [part.strip() for part in self.given.get("judges", "pickscore").split(",")]
        for name in self.named:
            if name not in JUDGES:
                raise unknown("judge", name, JUDGES)

    @cached_property
    def judges(self) -> list[Judge]:
        """The judges that are named, each with the settings that begin with its name."""
        shared = {key: self.given[key] for key in DEVICES if key in self.given}
        own = lambda name: {  # noqa: E731
            k.removeprefix(f"{name}_"): v for k, v in self.given.items() if k.startswith(f"{name}_")
        }
        return [JUDGES[name].build(own(name) | shared) for name in self.named]

    @cached_property
    def _test(self) -> list[Prompt]:
        if "prompts" not in self.given:
            raise MissingError(
                "DrawBench's prompts come from a file: set scorers.drawbench.prompts=FILE with one prompt a line "
                "(github.com/yifan123/flow_grpo has dataset/drawbench/test.txt)"
            )
        return [Prompt(text) for text in read_lines(Path(self.given["prompts"]))]

    def prompts(self, split: str) -> list[Prompt]:
        if split != "test":
            raise UsageError(f"DrawBench has test prompts only, not {split}: it is for bench eval")
        return self._test

    @property
    def scorer_name(self) -> str:
        return f"{self.name}-{self.version}+{'+'.join(judge.name for judge in self.judges)}"

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        texts = [p.text for p in prompts]
        raw = {judge.metric: judge(images_BCHW, texts) for judge in self.judges}
        shares = [np.clip(raw[judge.metric] / judge.ceiling, 0, 1) for judge in self.judges]
        return Scores(np.mean(shares, 0), raw)
