"""Preference scores from the words of a vision-language judge: VQAScore, and quality in five levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.errors import UsageError
from bench.hashing import text_hash
from tasks.bounds import Bounds
from tasks.vision.judge import SETTINGS, Question, Reply
from tasks.vision.loading import vision_judge

if TYPE_CHECKING:
    from torch import Tensor

MODELS = SETTINGS


class WordsJudge(ABC):
    """One question about every image, whose score is made of the probabilities of `words`."""

    metric: str
    bounds: Bounds
    asked: str
    """The question, with {text} for the prompt."""
    words: tuple[str, ...]

    def __init__(self, sources: dict[str, str]):
        self.judge = vision_judge(self.metric, sources, probable=True)

    @property
    def name(self) -> str:
        """Metric, hash of the question, and judge."""
        return f"{self.metric}-asked-{text_hash([self.asked, *self.words])[:8]}+{self.judge.name}"

    @property
    def elsewhere(self) -> bool:
        """Whether the judge is behind an endpoint."""
        return self.judge.elsewhere

    @abstractmethod
    def score(self, reply: Reply) -> float:
        """The score of an image."""

    def __call__(self, images_BCHW: Tensor, texts: list[str]) -> np.ndarray:
        """Scores, float64 [B]; NaN for an image that the judge refuses."""
        questions = [Question(i, self.asked.format(text=text), self.words) for i, text in enumerate(texts)]
        replies = self.judge.reply(images_BCHW, questions)
        return np.array([np.nan if reply.failure else self.score(reply) for reply in replies], np.float64)

    def differentiable(self, images_BCHW: Tensor, texts: list[str]) -> Tensor:
        """Raise UsageError: the judge's processor passes through PIL or another process."""
        raise UsageError(f"{self.metric} has no gradient")


class VqaScoreJudge(WordsJudge):
    """VQAScore (arXiv 2404.01291): the probability that the judge says yes to the prompt being shown."""

    metric = "vqascore"
    bounds = (0.0, 1.0)
    asked = 'Does this figure show "{text}"? Please answer yes or no.'
    words = ("Yes", "yes", " Yes", " yes")

    def score(self, reply: Reply) -> float:
        """The sum over the spellings of yes, as in GenEval 2's implementation."""
        return min(sum(reply.probabilities), 1.0)


class QualityJudge(WordsJudge):
    """Quality from 1 to 5, the mean of five levels weighted by their probabilities (Q-Align, arXiv 2312.17090).

    DeQA-Score (arXiv 2501.11561) is this rule with a judge trained for it.
    """

    metric = "quality"
    bounds = (0.0, 5.0)  # rewards are levels / 5, as published for DeQA-Score
    asked = "How would you rate the quality of this image? Answer with one word: excellent, good, fair, poor or bad."
    levels: ClassVar[dict[str, int]] = {"excellent": 5, "good": 4, "fair": 3, "poor": 2, "bad": 1}
    words = tuple(
        spelling for level in ("excellent", "good", "fair", "poor", "bad") for spelling in (level, level.capitalize())
    )

    def score(self, reply: Reply) -> float:
        """The expected level among the five; NaN if the judge gives none of them any probability."""
        numbers = np.repeat(list(self.levels.values()), 2)
        total = sum(reply.probabilities)
        return float(np.dot(numbers, reply.probabilities) / total) if total > 0 else float("nan")
