"""LongText-Bench (X-Omni, arXiv 2507.22058): long rendered texts, read by a vision-language model.

The official judge is Qwen2.5-VL-7B-Instruct in transformers. The text score is the share of all words, over all images,
that are read; of letters in the Chinese file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.api.task import Prompt
from tasks.official_scripts import literal
from tasks.suites.reading import matched, prepared, units, without
from tasks.suites.records import SeveralTextsRecord
from tasks.suites.suite import Suite, pooled, rows_of, sources_of
from tasks.vision.judge import Question, Reply

SAID = ("No text recognized.",)
"""What is removed from a reading: the official function returns the text without its last phrase only."""
LENGTH = 1024
PROMPTS = {"en": "text_prompts.jsonl", "zh": "text_prompts_zh.jsonl"}
SCRIPT, INSTRUCTION = "evaluate_text_reward.py", "qwen_prompt"
"""The official script with the instruction to read a text, and its name there."""


class LongText(Suite):
    """Reward: the share of an image's words that are read, each as often as it is there."""

    name = "longtext"
    version = "1"
    headline = "words_read"
    record = SeveralTextsRecord
    images = 4
    judged_by = "Qwen/Qwen2.5-VL-7B-Instruct"
    where = "github.com/X-Omni-Team/X-Omni, textbench"
    sources: ClassVar[dict[str, str]] = sources_of(f"the folder textbench, with {PROMPTS['en']} and {SCRIPT}") | {
        "language": "en (default) or zh"
    }

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        self.language = self.choice("language", tuple(PROMPTS))

    def official(self, source: Path) -> list[Path]:
        """The prompts of the language, and the script with the instruction."""
        return [source / PROMPTS[self.language], source / SCRIPT]

    def records(self, source: Path) -> list[Prompt]:
        """One prompt per line."""
        return [Prompt(row["prompt"], "", {"text": row["text"]}) for row in rows_of(self.official(source)[0])]

    def instructions(self) -> tuple[str, ...]:
        """What the judge is told."""
        return (literal(self._source / SCRIPT, INSTRUCTION),)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """One: to read the text."""
        if not self._units(prompt):
            raise ValueError("the text has no letters")
        return [Question(image, self.instructions()[0], length=LENGTH)]

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """`words_read`: the share of the text's words."""
        wanted = self._units(prompt)
        hits, words = matched(wanted, self._read(without(replies[0].text, SAID))), len(wanted)
        return {"words_read": hits / words}

    def published(self, prompts: list[Prompt], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The text score times 100: the share of all words of all images."""
        return {"text_score": pooled(rows["words_read"], [len(self._units(p)) for p in prompts])}

    def _units(self, prompt: Prompt) -> list[str]:
        return self._read(" ".join(prompt.metadata["text"]))

    def _read(self, text: str) -> list[str]:
        """What is counted of a text: words in lower case, or letters."""
        if self.language == "zh":
            return units(prepared(text, chinese=True), chinese=True)
        return units(prepared(text, chinese=False).lower(), chinese=False)
