"""T2I-CompBench (arXiv 2307.06350): attribute binding, judged by BLIP-VQA.

A prompt's score is the product, over its first eight noun phrases, of the probability of yes as the answer to the
phrase with a question mark, against yes or no. The official script finds noun phrases with spaCy's en_core_web_sm.
The categories spatial, 3d_spatial, numeracy and complex need the detector UniDet and are left out; non_spatial is
CLIPScore, which drawbench gives on its file of prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import ClassVar

from bench.api.task import Prompt
from bench.errors import MissingError, one_line, unknown
from tasks.clip import devices
from tasks.prompt_files import read_lines
from tasks.suites.blip import BATCH, MODEL, BlipJudge
from tasks.suites.records import PhrasesRecord
from tasks.suites.suite import Suite
from tasks.vision.judge import Question, Reply

CATEGORIES = ("color", "shape", "texture")
SPACY = "en_core_web_sm"
PLACES = ("top", "the side", "the left", "the right")
"""Noun phrases that the official script leaves out."""
MOST = 8
"""Noun phrases of a prompt that count."""
ASKED = "{phrase}?"


class CompBench(Suite):
    """Strata: the categories of attributes. Reward: the probability that all phrases are shown."""

    name = "compbench"
    version = "1"
    headline = "blip_vqa"
    images = 10
    probable = True
    record = PhrasesRecord
    judged_by = MODEL
    where = "github.com/Karine-Huang/T2I-CompBench, examples/dataset"
    sources: ClassVar[dict[str, str]] = {
        "prompts": f"the folder of prompts with {CATEGORIES[0]}_val.txt and so on",
        "categories": f"comma-separated choice of {', '.join(CATEGORIES)}; default: all",
        "images": "images per prompt; default: the published number",
        "judge": f"folder or hub id of a BLIP model for questions; default {MODEL}",
        "spacy": f"spaCy's model that finds noun phrases; default {SPACY}",
        **devices(BATCH),
    }

    def __init__(self, world: str, sources: dict[str, str] | None = None):
        super().__init__(world, sources)
        named = self.given.get("categories", ",".join(CATEGORIES))
        self.categories = [part.strip() for part in named.split(",")]
        for category in self.categories:
            if category not in CATEGORIES:
                raise unknown(f"category in scorers.{self.name}.categories", category, CATEGORIES)

    @cached_property
    def judge(self) -> BlipJudge:
        """BLIP, built at first use."""
        return BlipJudge(self.given)

    def official(self, source: Path) -> list[Path]:
        """The validation prompts of every category, which the paper evaluates on."""
        return [source / f"{category}_val.txt" for category in self.categories]

    def records(self, source: Path) -> list[Prompt]:
        """One prompt per line, with its noun phrases."""
        phrases = self._phrases()
        found = []
        for category, path in zip(self.categories, self.official(source)):
            for text in read_lines(path):
                shown = [phrase for phrase in phrases(text) if phrase not in PLACES]
                found.append(Prompt(text, category, {"phrases": shown[:MOST]}))
        return found

    def _phrases(self) -> Callable[[str], list[str]]:
        """The function from a prompt to its noun phrases. Raises MissingError without spaCy or its model."""
        named = self.given.get("spacy", SPACY)
        try:
            language = import_module("spacy").load(named)
        except (ImportError, OSError) as error:
            raise MissingError(
                f"{self.name} finds noun phrases with spaCy's {named} ({one_line(error)[:120]}): pip install spacy, "
                f"then python -m spacy download {named}"
            ) from error
        return lambda text: [str(chunk) for chunk in language(text).noun_chunks]

    def instructions(self) -> tuple[str, ...]:
        """The question's form."""
        return (ASKED,)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """One for each noun phrase."""
        return [Question(image, ASKED.format(phrase=phrase), ("yes", "no")) for phrase in prompt.metadata["phrases"]]

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """`blip_vqa`: the product over phrases of P(yes) / (P(yes) + P(no)), rounded to four digits as published."""
        shares = [yes / (yes + no) for yes, no in (reply.probabilities for reply in replies)]
        return {"blip_vqa": round(math.prod(round(share, 4) for share in shares), 4)}
