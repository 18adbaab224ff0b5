"""What the suites have in common: test prompts from their official files, and questions about every image."""

from __future__ import annotations

import csv
import re
from abc import abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import ValidationError

from bench.api.scores import FAILURE
from bench.api.task import Prompt, Scores, Task
from bench.config.settings import first_problem
from bench.errors import BenchError, DamagedError, MissingError, UsageError, one_line, unknown
from bench.hashing import content_hash, text_hash
from bench.system import files
from bench.weights.checkpoints import refuse_stand_in
from tasks.suites.records import SuiteRecord
from tasks.vision.judge import SETTINGS, Question, Reply, VisionJudge, check_key
from tasks.vision.loading import vision_judge

if TYPE_CHECKING:
    from torch import Tensor


class UnusableError(ValueError):
    """A judge's replies from which no score can be made."""


class Suite(Task):
    """Test prompts from official files, judged by questions. The reward is the headline metric, from 0 to 1.

    An image whose replies are unusable has no score, and its details say why.
    """

    splits = ("test",)
    where: ClassVar[str]
    """Where the official files are, for messages."""
    images: ClassVar[int]
    """Number of images per prompt, as published."""
    judged_by: ClassVar[str]
    """The published judge."""
    probable: ClassVar[bool] = False
    """Whether the judge is asked for probabilities of words."""
    record: ClassVar[type[SuiteRecord]]
    """What a prompt's metadata must have."""
    attempts: ClassVar[int] = 1
    """How often an image is asked about until its replies are usable."""

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.world_entry({"photo": None})  # refuses every other world: the judges see photographs
        check_key(f"scorers.{self.name}", self.given)
        asked = self.given.get("images", str(self.images))
        if not re.fullmatch("[1-9][0-9]{0,2}", asked):
            raise UsageError(
                f"scorers.{self.name}.images is a number of images per prompt below 1000, not {asked!r:.60}"
            )
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
        """What to ask about the image at place `image` of a batch. Raises ValueError if its metadata do not fit."""

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
    def _files(self) -> list[Path]:
        """The official files. Raises MissingError or UsageError for one that is not there or is no file."""
        found = self.official(self._source)
        for path in found:
            if path.exists() and not path.is_file():  # opening a named pipe would wait for ever
                raise DamagedError(f"{path} is not a file: {self.name} reads {type(self).sources['prompts']}")
            refuse_stand_in(path, f"file of {self.name}")
        return found

    @cached_property
    def _test(self) -> list[Prompt]:
        _ = self._files
        try:
            found = self.records(self._source)
        except OSError as error:
            raise UsageError(f"cannot read the prompts of {self.name}: {one_line(error)}") from error
        except BenchError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
            cause = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
            raise DamagedError(f"{self._source} does not hold the files of {self.name}: {cause}") from error
        if not found:
            raise DamagedError(f"{self._source} holds no prompts of {self.name}")
        for prompt in found:
            if not isinstance(prompt.text, str) or not prompt.text.strip():
                raise DamagedError(f"{self._source}: a prompt of {self.name} is not text: {prompt.text!r:.60}")
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
            self.record.model_validate(prompt.metadata)
            self.questions(prompt, 0, 0)
        except ValueError as error:
            # pydantic's error is a ValueError too.
            cause = first_problem(error, self.record) if isinstance(error, ValidationError) else one_line(error)
            raise UsageError(f"a prompt of {self.name} has other metadata: {cause}") from error

    @cached_property
    def judge(self) -> VisionJudge:
        """The judge, built at first use. Raises MissingError if none is set."""
        return vision_judge(self.name, self.given, self.probable, self.judged_by)

    @property
    def elsewhere(self) -> bool:
        """Whether the judge is behind an endpoint."""
        return self.judge.elsewhere

    @property
    def scorer_name(self) -> str:
        """Version of the rules, hash of the instructions, hash of the official files if they are set, and judge."""
        parts = [f"{self.name}-{self.version}", f"asked-{text_hash(list(self.instructions()))[:8]}"]
        if "prompts" in self.given:
            parts.append(f"files-{content_hash(self._files)[:8]}")
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
            for name in names or [self.headline]
        }
        return Scores(metrics[self.headline].clip(0, 1), metrics, details)

    def _replies(
        self, images_BCHW: Tensor, prompts: list[Prompt], left: list[int], attempt: int
    ) -> Iterable[list[Reply]]:
        """The replies about each image of `left`."""
        asked = [self.questions(prompts[i], i, attempt) for i in left]
        together = [question for questions in asked for question in questions]
        replies = iter(self.judge.reply(images_BCHW, together) if together else [])
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
    """The rows of a CSV file. Raises DamagedError, naming the first column that is missing or row that is cut off."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for column in columns:
            if column not in (rows.fieldnames or ()):
                raise DamagedError(f"{path} has no column {column!r}: it has {', '.join(rows.fieldnames or ())}")
        found = []
        for row in rows:
            if any(row[column] is None for column in columns):
                raise DamagedError(f"{path}, line {rows.line_num}: a row is cut off")
            found.append(row)
        return found


def pooled(values: np.ndarray, counts: Iterable[float]) -> float:
    """100 sum(value x count) / sum(count) over the images that have a value: a published ratio of sums.

    NaN if no image has one.
    """
    counts_N = np.array(list(counts), np.float64)
    kept = ~np.isnan(values) & (counts_N > 0)
    return 100 * float(np.average(values[kept], weights=counts_N[kept])) if kept.any() else float("nan")


def yes(reply: Reply) -> bool:
    """Whether a reply starts with the word yes, in any case."""
    return bool(re.match(r"\s*yes\b", reply.text, re.IGNORECASE))
