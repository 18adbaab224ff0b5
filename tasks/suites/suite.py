"""What the suites have in common: test prompts from their official files, and questions about every image."""

from __future__ import annotations

import csv
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.api.scores import FAILURE
from bench.api.task import Prompt, Scores, Task
from bench.errors import DamagedError, MissingError, UsageError, one_line, unknown
from bench.hashing import content_hash, text_hash
from bench.system import files
from bench.weights.checkpoints import refuse_stand_in
from tasks.vision.judge import SETTINGS, Question, Reply, VisionJudge
from tasks.vision.loading import vision_judge

if TYPE_CHECKING:
    from torch import Tensor

MEANS = "means"
"""Key in a prompt's metadata for means over the suite's prompts, by which counts become published ratios."""


class UnusableError(ValueError):
    """A judge's replies from which no score can be made."""


class Suite(Task):
    """Test prompts from official files, judged by questions. The reward is one of the metrics, from 0 to 1.

    An image whose replies are unusable has no score, and its details say why.
    """

    where: ClassVar[str]
    """Where the official files are, for messages."""
    images: ClassVar[int]
    """Number of images per prompt, as published."""
    rewarded: ClassVar[str]
    """The metric that is the reward."""
    judged_by: ClassVar[str]
    """The published judge."""
    probable: ClassVar[bool] = False
    """Whether the judge is asked for probabilities of words."""
    attempts: ClassVar[int] = 1
    """How often an image is asked about until its replies are usable."""

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.world_entry({"photo": None})  # refuses every other world: the judges see photographs
        asked = self.given.get("images", str(self.images))
        if not asked.isdecimal() or not int(asked):
            raise UsageError(f"scorers.{self.name}.images is a number of images per prompt, not {asked!r}")
        self.per_prompt = int(asked)

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """The value of a setting with a few known ones, of which the first is the default. Raises UsageError."""
        chosen = self.given.get(key, known[0])
        if chosen not in known:
            raise unknown(f"scorers.{self.name}.{key}", chosen, known)
        return chosen

    @abstractmethod
    def records(self, source: Path) -> list[Prompt]:
        """The suite's prompts, each once, from the official file or folder.

        Raises ValueError or KeyError for contents that are not the suite's.
        """

    @abstractmethod
    def official(self, source: Path) -> list[Path]:
        """The files that `records` reads."""

    @abstractmethod
    def instructions(self) -> tuple[str, ...]:
        """The texts by which the judge is asked, with placeholders; their hash is part of the scorer's name."""

    @abstractmethod
    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """What to ask about the image at place `image` of a batch. Raises KeyError or TypeError for other metadata."""

    @abstractmethod
    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """An image's metrics, the same for every prompt of the suite. Raises UnusableError if there are none."""

    @cached_property
    def _source(self) -> Path:
        if "prompts" not in self.given:
            raise MissingError(
                f"{self.name} reads its prompts from the official files: set scorers.{self.name}.prompts to "
                f"{type(self).sources['prompts']} ({self.where})"
            )
        return Path(self.given["prompts"])

    @cached_property
    def _test(self) -> list[Prompt]:
        try:
            for path in self.official(self._source):
                refuse_stand_in(path, f"file of {self.name}")
            found = self.records(self._source)
        except OSError as error:
            raise UsageError(f"cannot read the prompts of {self.name}: {one_line(error)}") from error
        except DamagedError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            cause = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise DamagedError(f"{self._source} does not hold the files of {self.name}: {cause}") from error
        if not found:
            raise DamagedError(f"{self._source} holds no prompts of {self.name}")
        for prompt in found:
            self.check(prompt)
        return [prompt for prompt in found for _ in range(self.per_prompt)]

    def prompts(self, split: str) -> list[Prompt]:
        """The test prompts, as often as there are images of each. Raises UsageError for any other split."""
        if split != "test":
            raise UsageError(f"{self.name} has test prompts only, no {split} prompts: use it with bench eval")
        return self._test

    def check(self, prompt: Prompt) -> None:
        """Raise UsageError for a prompt without what this suite asks about it."""
        try:
            self.questions(prompt, 0, 0)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            cause = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise UsageError(f"a prompt of {self.name} has other metadata: {cause}") from error

    @cached_property
    def judge(self) -> VisionJudge:
        """The judge, built at first use. Raises MissingError if none is set."""
        return vision_judge(self.name, self.given, self.probable)

    @property
    def elsewhere(self) -> bool:
        """Whether the judge is behind an endpoint."""
        return self.judge.elsewhere

    @property
    def scorer_name(self) -> str:
        """Version of the rules, hash of the instructions, hash of the official files if they are set, and judge."""
        parts = [f"{self.name}-{self.version}", f"asked-{text_hash(list(self.instructions()))[:8]}"]
        if "prompts" in self.given:
            parts.append(f"files-{content_hash(self.official(self._source))[:8]}")
        return "+".join([*parts, self.judge.name])

    def score(self, images_BCHW: Tensor, prompts: list[Prompt]) -> Scores:
        """The metrics of `mark`, NaN for images without usable replies, and the replies as details."""
        for prompt in prompts:
            self.check(prompt)
        marks: dict[int, dict[str, float]] = {}
        details: list[dict[str, Any]] = [{} for _ in prompts]
        left = list(range(len(prompts)))
        for attempt in range(self.attempts):
            failed = []
            for i, replies in zip(left, self._replies(images_BCHW, prompts, left, attempt)):
                details[i] = {"replies": [reply.text or reply.probabilities for reply in replies]}
                try:
                    if refused := next((reply.failure for reply in replies if reply.failure), ""):
                        raise UnusableError(refused)
                    marks[i] = self.mark(prompts[i], replies)
                except UnusableError as error:
                    details[i][FAILURE] = one_line(error)
                    failed.append(i)
            left = failed
            if not left:
                break
        names = list(dict.fromkeys(name for mark in marks.values() for name in mark))
        metrics = {
            name: np.array([marks.get(i, {}).get(name, np.nan) for i in range(len(prompts))], np.float64)
            for name in names or [self.headline, self.rewarded]
        }
        return Scores(metrics[self.rewarded], metrics, details)

    def _replies(
        self, images_BCHW: Tensor, prompts: list[Prompt], left: list[int], attempt: int
    ) -> Iterable[list[Reply]]:
        """The replies about each image of `left`."""
        asked = [self.questions(prompts[i], i, attempt) for i in left]
        replies = iter(self.judge.reply(images_BCHW, [question for questions in asked for question in questions]))
        for questions in asked:
            yield [next(replies) for _ in questions]


def sources_of(prompts: str) -> dict[str, str]:
    """The settings of a suite; `prompts` says what its official file or folder is."""
    return {"prompts": prompts, "images": "images per prompt; default: the published number", **SETTINGS}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. Raises DamagedError naming the line that is not one, also if it is the last."""
    rows = []
    for number, line in enumerate(files.read_lines(path), 1):
        if line.strip():
            row = files.parse_json(line, f"{path}, line {number}")
            if not isinstance(row, dict):
                raise DamagedError(f"{path}, line {number}: a prompt is an object, not {type(row).__name__}")
            rows.append(row)
    return rows


def table_of(path: Path, *columns: str) -> list[dict[str, str]]:
    """The rows of a CSV file. Raises DamagedError, naming the first column that is missing."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for column in columns:
            if column not in (rows.fieldnames or ()):
                raise DamagedError(f"{path} has no column {column!r}: it has {', '.join(rows.fieldnames or ())}")
        return list(rows)


def with_means(prompts: list[Prompt], counts: list[dict[str, float]]) -> list[Prompt]:
    """The prompts with the mean of every count over all of them in their metadata (a missing count is 0).

    A published ratio of sums over all images, sum(hits) / sum(counts), is then the mean over images of
    `share`(hits, mean count), because every prompt has the same number of images.
    """
    names = dict.fromkeys(name for mine in counts for name in mine)
    means = {name: sum(mine.get(name, 0) for mine in counts) / len(prompts) for name in names}
    return [Prompt(p.text, p.stratum, p.metadata | {MEANS: means}) for p in prompts]


def yes(reply: Reply) -> bool:
    """Whether a reply starts with the word yes, in any case."""
    return reply.text.strip().lower().startswith("yes")
