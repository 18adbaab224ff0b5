"""Preference scores as tasks, for training or evaluation, with prompts from the user's files."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from bench.api.task import Prompt, Scores
from tasks.bounds import clipped, unclipped
from tasks.preference.clipscore import DEFAULT
from tasks.preference.hpsv3 import refuse_markers
from tasks.preference.judges import JUDGES, Judge
from tasks.preference.vision import WordsJudge
from tasks.prompt_files import SOURCE, PromptFileTask
from tasks.vision.judge import check_key

if TYPE_CHECKING:
    from torch import Tensor


class PreferenceTask(PromptFileTask):
    """Reward: one judge's score in its bounds, clipped to [0, 1]. Headline: the raw score."""

    version = "1"

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self._build = self.world_entry({"photo": JUDGES[self.name].build})

    @cached_property
    def judge(self) -> Judge:
        """The judge, built at first use, as a server may score in its place."""
        return self._build(self.given)

    @property
    def scorer_name(self) -> str:
        """Version of the task and the judge's name."""
        return f"{self.name}-{self.version}+{self.judge.name}"

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The reward, and the raw score under the metric's name."""
        raw = self.judge(images_BCHW, [p.text for p in prompts])
        return Scores(clipped(raw, self.judge.bounds), {self.judge.metric: raw})

    def differentiable_reward(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Tensor:
        """The reward of `score` with gradients to the images, not clipped to [0, 1]."""
        return unclipped(self.judge.differentiable(images_BCHW, [p.text for p in prompts]), self.judge.bounds)


class Aesthetic(PreferenceTask):
    """Rating by LAION's aesthetic predictor, which ignores the prompt."""

    name = "aesthetic"
    headline = "aesthetic"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["aesthetic"].sources


class ClipScore(PreferenceTask):
    """CLIPScore: agreement of image and prompt, in the convention that is set."""

    name = "clipscore"
    version = "2"
    headline = f"clipscore-{DEFAULT}"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["clipscore"].sources

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.headline = f"clipscore-{self.given.get('convention', DEFAULT)}"


class Hps(PreferenceTask):
    """Human Preference Score v2.1, a fine-tuned CLIP."""

    name = "hpsv2"
    headline = "hpsv2.1"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["hpsv2"].sources


class HpsV3(PreferenceTask):
    """Human Preference Score v3, a fine-tuned vision-language model."""

    name = "hpsv3"
    headline = "hpsv3"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["hpsv3"].sources

    def check(self, prompt: Prompt) -> None:
        """Raise UsageError for a prompt that contains one of the model's own markers."""
        refuse_markers(prompt.text)


class ImageReward(PreferenceTask):
    """ImageReward, a fine-tuned BLIP that reads the prompt while it sees the image."""

    name = "imagereward"
    headline = "imagereward"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["imagereward"].sources


class WordsTask(PreferenceTask):
    """A score made of the words of a vision-language judge, which has no gradient."""

    judge: WordsJudge

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        check_key(f"scorers.{self.name}", self.given)

    @property
    def elsewhere(self) -> bool:
        """Whether the judge is behind an endpoint."""
        return self.judge.elsewhere

    @property
    def differentiable(self) -> bool:
        """False."""
        return False


class VqaScore(WordsTask):
    """VQAScore: the probability that a vision-language judge says yes to the prompt being shown."""

    name = "vqascore"
    headline = "vqascore"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["vqascore"].sources


class Quality(WordsTask):
    """Quality in five levels by a vision-language judge, whatever the prompt."""

    name = "quality"
    headline = "quality"
    sources: ClassVar[dict[str, str]] = SOURCE | JUDGES["quality"].sources
