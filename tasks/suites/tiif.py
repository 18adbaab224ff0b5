"""TIIF-Bench (arXiv 2506.02161): instructions, judged by yes-or-no questions that are asked together.

The official judge is GPT-4o at temperature 1, with one of three instructions drawn at random. Here the temperature is 0
and the prompt decides which instruction comes first, so that scores can be repeated; the next one follows if a reply
does not answer every question. The instructions are read from the official script.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.api.task import Prompt
from bench.errors import DamagedError, UsageError
from bench.hashing import seed_of
from tasks.official_scripts import literal
from tasks.suites.records import AnsweredRecord
from tasks.suites.suite import Suite, UnusableError, pooled, rows_of, sources_of
from tasks.vision.judge import Question, Reply

SCRIPT = "eval/eval_with_vlm.py"
NAMES = ("raw_prompt", "raw_prompt_1", "raw_prompt_2")
"""The script's variables with the instructions."""
HERE = "##YNQuestions##"
"""Where an instruction has its questions."""
SYSTEM = "You are a professional image critic."
PARTS = ("testmini", "test")
LENGTHS = ("short", "long")
WORDS = 100
"""Tokens for the answer to one question with its reason."""


class TiifBench(Suite):
    """Strata: the types of prompts. Headline: the share of a type's questions answered as they should be."""

    name = "tiif"
    version = "1"
    headline = "accuracy"
    record = AnsweredRecord
    images = 1
    attempts = 3
    judged_by = "gpt-4o"
    where = "github.com/A113N-W3I/TIIF-Bench"
    sources: ClassVar[dict[str, str]] = sources_of(f"the folder of TIIF-Bench's repository, with data and {SCRIPT}") | {
        "part": f"prompts: {PARTS[0]} (default) or {PARTS[1]}",
        "description": f"description of every scene: {LENGTHS[0]} (default) or {LENGTHS[1]}",
    }

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.part = self.choice("part", PARTS)
        self.description = self.choice("description", LENGTHS)

    def _lists(self, source: Path, kind: str) -> list[Path]:
        folder = source / "data" / f"{self.part}_{kind}"
        found = sorted(folder.glob("*.jsonl"))
        if not found:
            raise UsageError(f"{folder} holds no *.jsonl files: set scorers.{self.name}.prompts to {self.where}")
        return found

    def official(self, source: Path) -> list[Path]:
        """The prompts, the questions, and the script with the instructions."""
        return [*self._lists(source, "prompts"), *self._lists(source, "eval_prompts"), source / SCRIPT]

    def records(self, source: Path) -> list[Prompt]:
        """The prompts of all types; prompts and questions are in the same order in their files."""
        asked = {rows[0]["type"]: rows for rows in map(rows_of, self._lists(source, "eval_prompts")) if rows}
        found = []
        for path in self._lists(source, "prompts"):
            rows = rows_of(path)
            kind = rows[0]["type"] if rows else ""
            questions = asked.get(kind, [])
            if len(questions) != len(rows):
                raise DamagedError(f"{path} has {len(rows)} prompts, but there are {len(questions)} lists of questions")
            for row, entry in zip(rows, questions):
                metadata = {
                    "questions": [question.strip() for question in entry["yn_question_list"]],
                    "answers": [str(answer).strip().lower() for answer in entry["yn_answer_list"]],
                }
                found.append(Prompt(row[f"{self.description}_description"], kind, metadata))
        return found

    @cached_property
    def _instructions(self) -> tuple[str, ...]:
        texts = tuple(literal(self._source / SCRIPT, name) for name in NAMES)
        for name, text in zip(NAMES, texts):
            if HERE not in text:
                raise DamagedError(f"{self._source / SCRIPT}: the instruction {name} has no {HERE}")
        return texts

    def instructions(self) -> tuple[str, ...]:
        """The three official instructions and the system message."""
        return (SYSTEM, *self._instructions)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """One: all of the prompt's questions in the instruction of this attempt."""
        asked = prompt.metadata["questions"]
        if len(asked) != len(prompt.metadata["answers"]):
            raise ValueError(f"{len(asked)} questions, but {len(prompt.metadata['answers'])} answers")
        turn = (seed_of(self.name, prompt.text) + attempt) % len(NAMES)
        text = self._instructions[turn].replace(HERE, "\n".join(asked))
        return [Question(image, text, length=WORDS * len(asked), system=SYSTEM, text_first=True)]

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """`accuracy`: the share of right answers."""
        right = prompt.metadata["answers"]
        found = [line[1].lower() for line in map(ANSWER.match, replies[0].text.split("\n")) if line]
        if len(found) != len(right):
            raise UnusableError(f"the judge gave {len(found)} answers to {len(right)} questions")
        hits = sum(answer == wanted for answer, wanted in zip(found, right))
        return {"accuracy": hits / len(right)}

    def published(self, prompts: list[Prompt], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The share of all right answers of each type, times 100, and their mean over types."""
        counts_N = np.array([len(p.metadata["questions"]) for p in prompts])
        kinds_N = np.array([p.stratum for p in prompts])
        kinds = dict.fromkeys(kinds_N.tolist())
        found = {kind: pooled(rows["accuracy"][kinds_N == kind], counts_N[kinds_N == kind]) for kind in kinds}
        return {"overall": float(np.mean(list(found.values()))), **found}


ANSWER = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
"""A line with an answer; other lines are ignored, as published."""
