"""OneIG-Bench (arXiv 2506.07977), English: alignment of objects, portraits and anime, and rendered text.

The official judge is Qwen2.5-VL-7B-Instruct in transformers. Its dimensions style, reasoning and diversity need other
networks (CSD, LLM2CLIP, DreamSim) and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench.api.task import Prompt
from bench.errors import DamagedError
from bench.system import files
from tasks.official_scripts import literal
from tasks.suites.dependent import as_parents, as_questions, asked_of, granted
from tasks.suites.reading import CHINESE, distance, matched, prepared, units, without
from tasks.suites.records import ClassedRecord, OneTextRecord
from tasks.suites.suite import Suite, pooled, sources_of, table_of
from tasks.vision.judge import Question, Reply

PROMPTS = "OneIG-Bench.csv"
CLASSES = {"Anime_Stylization": "anime", "Portrait": "human", "General_Object": "object"}
"""Category in the table of prompts -> name of its questions' file, for the categories of alignment."""
TEXTS = "Text_Rendering"
ASKED = "{question}. Please answer 'Yes' or 'No' only."
SCRIPT, INSTRUCTION = "scripts/utils/inference.py", "TEXT_PROMPT"
"""The official script with the instruction to read a text, and its name there."""
SAID = ("addCriterion", "No text recognized.")
"""What is removed from a reading, as published."""
FARTHEST = 100
"""Edit distance, in letters, at which the published text score is lowest."""
WORDY = 60
"""Number of words above which a reading may have 256 tokens instead of 128, as published."""
WHERE = "github.com/OneIG-Bench/OneIG-Benchmark"
FOLDER = f"the folder of OneIG-Benchmark's repository, with {PROMPTS} and scripts"


def _prompts_of(source: Path, category: str) -> dict[str, str]:
    """id -> prompt of a category."""
    rows = [row for row in table_of(source / PROMPTS, "category", "id", "prompt_en") if row["category"] == category]
    found = {row["id"]: row["prompt_en"] for row in rows}
    if len(found) < len(rows):
        raise DamagedError(f"{source / PROMPTS} has an id of {category} twice")
    return found


class OneIgAlignment(Suite):
    """Reward: the share of questions answered Yes, none of whose parents was answered otherwise; no strata."""

    name = "oneig"
    version = "1"
    headline = "alignment"
    record = ClassedRecord
    images = 4
    judged_by = "Qwen/Qwen2.5-VL-7B-Instruct"
    where = WHERE
    sources: ClassVar[dict[str, str]] = sources_of(FOLDER)

    def official(self, source: Path) -> list[Path]:
        """The prompts and the questions of every category."""
        return [source / PROMPTS, *(source / "scripts/alignment/Q_D" / f"{name}.json" for name in CLASSES.values())]

    def records(self, source: Path) -> list[Prompt]:
        """The prompts of all categories that have questions."""
        _, *asked = self.official(source)
        found = []
        for path, (category, name) in zip(asked, CLASSES.items()):
            texts = _prompts_of(source, category)
            for number, entry in _object(path).items():
                if number not in texts:
                    raise DamagedError(f"{path} asks about prompt {number!r}, which {PROMPTS} does not have")
                questions, parents = (_again(entry[key]) for key in ("question", "dependency"))
                metadata = {"class": name, "questions": questions, "parents": parents}
                found.append(Prompt(texts[number], "", metadata))
        return found

    def instructions(self) -> tuple[str, ...]:
        """The question's form."""
        return (ASKED,)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """The prompt's questions in their order."""
        return asked_of(prompt, image, ASKED)

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """`alignment`, and the same for images of each category alone (NaN for the others)."""
        numbers = as_questions(prompt.metadata["questions"])
        answers = {number: reply.text == "Yes" for number, reply in zip(numbers, replies)}
        kept = granted(answers, as_parents(prompt.metadata["parents"]), passed_on=False)
        value = sum(kept.values()) / len(kept)
        mine = prompt.metadata["class"]
        return {"alignment": value} | {
            f"alignment-{name}": value if name == mine else float("nan") for name in CLASSES.values()
        }


class OneIgText(Suite):
    """Reward: the published formula on one image, 1 - min(ED, 100) (1 - CR) (1 - WAC) / 100.

    ED is the edit distance, CR whether there is no error, WAC the share of words that are read. The published score of
    a model is the formula on their means over all images.
    """

    name = "oneig_text"
    version = "1"
    headline = "text"
    record = OneTextRecord
    images = 4
    judged_by = "Qwen/Qwen2.5-VL-7B-Instruct"
    where = WHERE
    sources: ClassVar[dict[str, str]] = sources_of(FOLDER)

    def official(self, source: Path) -> list[Path]:
        """The prompts, the texts that their images should show, and the script with the instruction."""
        return [source / PROMPTS, source / "scripts/text/text_content.csv", source / SCRIPT]

    def records(self, source: Path) -> list[Prompt]:
        """The prompts with a text."""
        texts = _prompts_of(source, TEXTS)
        rows = table_of(self.official(source)[1], "id", "text_content")
        return [Prompt(texts[row["id"]], "", {"text": row["text_content"]}) for row in rows]

    def instructions(self) -> tuple[str, ...]:
        """What the judge is told."""
        return (literal(self._source / SCRIPT, INSTRUCTION),)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """One: to read the text."""
        if not units(prepared(prompt.metadata["text"])):
            raise ValueError("the text has no letters")
        length = 256 if len(prompt.metadata["text"].split()) > WORDY else 128
        return [Question(image, self.instructions()[0], length=length)]

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """The published formula on one image, and its parts."""
        wanted, read = prepared(prompt.metadata["text"]), prepared(without(replies[0].text, SAID))
        away, exact = distance(read, wanted), float(read == wanted)
        chinese = bool(CHINESE.search(wanted))
        hits, words = matched(units(wanted), units(read, chinese)), len(units(wanted))
        score = 1 - min(away, FARTHEST) * (1 - exact) * (1 - hits / words) / FARTHEST
        return {"text": score, "edit_distance": away, "exact": exact, "words_read": hits / words}

    def published(self, prompts: list[Prompt], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """ED, CR and WAC (times 100) and the text score (times 100) that the official script makes of them."""
        ones = [1] * len(prompts)
        away, exact = pooled(rows["edit_distance"], ones) / 100, pooled(rows["exact"], ones)
        words = pooled(rows["words_read"], [len(units(prepared(p.metadata["text"]))) for p in prompts])
        score = 100 - min(away, FARTHEST) * (100 - exact) * (100 - words) / (100 * FARTHEST)
        return {"text_score": score, "ED": away, "CR": exact, "WAC": words}


def _object(path: Path) -> dict[str, Any]:
    found = files.parse_json(files.read_text(path), str(path))
    if not isinstance(found, dict):
        raise DamagedError(f"{path} should hold an object, not {type(found).__name__}")
    return found


def _again(value: Any) -> Any:
    """The questions' files hold some objects as JSON text inside JSON."""
    return files.parse_json(value, "a list of questions") if isinstance(value, str) else value
