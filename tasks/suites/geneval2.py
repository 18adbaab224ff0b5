"""GenEval 2 (arXiv 2512.16853): Soft-TIFA, the probabilities of the right answers to questions about every atom.

The official judge is Qwen3-VL-8B-Instruct in transformers. An answer's probability is the sum over its spellings of the
probability of their first tokens. A prompt's atom-level score is the arithmetic mean over its questions and its
prompt-level score, the headline, the geometric mean. Published scores are these times 100.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np

from bench.api.task import Prompt
from tasks.suites.records import Skill, SoftTifaRecord
from tasks.suites.suite import Suite, pooled, rows_of, sources_of
from tasks.vision.judge import Question, Reply

SKILLS = get_args(Skill)
ASKED = "{question} Answer in one word."
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class GenEval2(Suite):
    """Composition with up to ten atoms. Strata: the number of atoms, equally frequent in the official file."""

    name = "geneval2"
    version = "1"
    headline = "gm"
    images = 1
    probable = True
    record = SoftTifaRecord
    judged_by = "Qwen/Qwen3-VL-8B-Instruct"
    where = "github.com/facebookresearch/GenEval2, licence CC BY-NC 4.0"
    sources: ClassVar[dict[str, str]] = sources_of("the file geneval2_data.jsonl")

    def official(self, source: Path) -> list[Path]:
        """The file itself."""
        return [source]

    def records(self, source: Path) -> list[Prompt]:
        """One prompt per line."""
        return [
            Prompt(row["prompt"], f"{int(row['atom_count'])} atoms", {key: row[key] for key in ("vqa_list", "skills")})
            for row in rows_of(source)
        ]

    def instructions(self) -> tuple[str, ...]:
        """The question's form."""
        return (ASKED,)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """The prompt's questions, each with the spellings of its answer."""
        pairs = prompt.metadata["vqa_list"]
        if len(pairs) != len(prompt.metadata["skills"]):
            raise ValueError(f"{len(pairs)} questions, but {len(prompt.metadata['skills'])} skills")
        return [Question(image, ASKED.format(question=asked), _spellings(asked, answer)) for asked, answer in pairs]

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """`gm` and `am`, and the mean of each skill's questions (NaN without any)."""
        scores = [min(sum(reply.probabilities), 1.0) for reply in replies]
        gm = math.exp(np.mean(np.log(scores))) if min(scores) > 0 else 0.0
        found = {"gm": gm, "am": float(np.mean(scores))}
        for skill in SKILLS:
            mine = [score for score, of in zip(scores, prompt.metadata["skills"]) if of == skill]
            found[f"skill-{skill}"] = float(np.mean(mine)) if mine else float("nan")
        return found

    def published(self, prompts: list[Prompt], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Soft-TIFA times 100: means over prompts, and over all questions of each skill."""
        found = {name: pooled(rows[name], [1] * len(prompts)) for name in ("gm", "am")}
        for skill in SKILLS:
            counts = [p.metadata["skills"].count(skill) for p in prompts]
            found[skill] = pooled(rows[f"skill-{skill}"], counts)
        return found


def _spellings(question: str, answer: str) -> tuple[str, ...]:
    """The spellings of the right answer: those of yes, or for a question of number the word's and the digits."""
    if not question.startswith("How many"):
        if answer.lower() != "yes":
            raise ValueError(f"the answer to {question!r} should be Yes, not {answer!r}")
        return ("Yes", "yes", " yes", " Yes")
    words = (answer, answer.capitalize())
    digits = (str(NUMBERS.index(answer) + 1),) if answer in NUMBERS else ()
    return tuple(spelling for word in (*words, *digits) for spelling in (word, f" {word}"))
