"""LongText-Bench (X-Omni, arXiv 2507.22058): long rendered texts, read by a vision-language model.

The official judge is Qwen2.5-VL-7B-Instruct in transformers. The text score is the share of all words, over all images,
that are read; of letters in the Chinese file.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bench.api.task import Prompt
from tasks.official_scripts import literal
from tasks.suites.reading import matched, prepared, units, without
from tasks.suites.suite import MEANS, Suite, rows_of, sources_of, with_means
from tasks.vision.judge import Question, Reply

SAID = ("No text recognized.",)
"""What is removed from a reading: the official function returns the text without its last phrase only."""
LENGTH = 1024
PROMPTS = {"en": "text_prompts.jsonl", "zh": "text_prompts_zh.jsonl"}
SCRIPT, INSTRUCTION = "evaluate_text_reward.py", "qwen_prompt"
"""The official script with the instruction to read a text, and its name there."""


class LongText(Suite):
    """Headline: the text score, of which an image has its share. Reward: the share of the image's own words."""

    name = "longtext"
    version = "1"
    headline = "text_score"
    rewarded = "own_words"
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
        prompts = [Prompt(row["prompt"], "", {"text": list(row["text"])}) for row in rows_of(self.official(source)[0])]
        return with_means(prompts, [{"words": len(units(_text(p)))} for p in prompts])

    def instructions(self) -> tuple[str, ...]:
        """What the judge is told."""
        return (literal(self._source / SCRIPT, INSTRUCTION),)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """One: to read the text."""
        if not units(_text(prompt)):
            raise ValueError("the text has no letters")
        return [Question(image, self.instructions()[0], length=LENGTH)]

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """`text_score`, whose mean over all images is the published score, and the image's own share of words."""
        wanted = _text(prompt)
        hits, words = matched(wanted, prepared(without(replies[0].text, SAID)).lower()), len(units(wanted))
        return {"text_score": hits / prompt.metadata.get(MEANS, {}).get("words", words), "own_words": hits / words}


def _text(prompt: Prompt) -> str:
    return prepared(" ".join(prompt.metadata["text"])).lower()
