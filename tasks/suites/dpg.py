"""DPG-Bench (ELLA, arXiv 2403.05135): dense prompts, judged by yes-or-no questions that depend on each other.

The official judge is mPLUG-large (VQA), which needs modelscope: scores of another judge are another scale, as the
scorer's name says. The official script leaves out the first question of the first prompt, on which others depend; here
it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from bench.api.task import Prompt
from tasks.suites.dependent import as_parents, as_questions, asked_of, granted
from tasks.suites.records import CategorisedRecord
from tasks.suites.suite import Suite, pooled, sources_of, table_of, yes
from tasks.vision.judge import Question, Reply

CATEGORIES = ("entity", "attribute", "relation", "global", "other")
"""The first level of the official categories."""
ASKED = "{question} Answer yes or no."
"""mPLUG is asked the bare question; a chat model needs to be told how to answer."""


class DpgBench(Suite):
    """Dense prompts. Reward: the share of questions answered yes, none of whose parents was answered no."""

    name = "dpg"
    version = "1"
    headline = "dpg"
    images = 4
    judged_by = "mPLUG-large"
    record = CategorisedRecord
    where = "github.com/TencentQQGYLab/ELLA, dpg_bench/dpg_bench.csv"
    sources: ClassVar[dict[str, str]] = sources_of("the file dpg_bench.csv")

    def official(self, source: Path) -> list[Path]:
        """The file itself."""
        return [source]

    def records(self, source: Path) -> list[Prompt]:
        """One prompt per item_id, whose rows are its questions."""
        columns = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
        items: dict[str, Prompt] = {}
        for row in table_of(source, *columns):
            blank: dict = {"questions": {}, "parents": {}, "categories": {}}
            item = items.setdefault(row["item_id"], Prompt(row["text"], "", blank))
            number = str(int(row["proposition_id"]))
            if item.text != row["text"] or number in item.metadata["questions"]:
                raise ValueError(f"the item {row['item_id']!r:.60} is there twice")
            item.metadata["questions"][number] = row["question_natural_language"]
            item.metadata["parents"][number] = [int(parent) for parent in row["dependency"].split(",")]
            item.metadata["categories"][number] = row["tuple"].split("(")[0].split("-")[0].strip()
        return list(items.values())

    def instructions(self) -> tuple[str, ...]:
        """The question's form."""
        return (ASKED,)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """The prompt's questions in their order."""
        asked = asked_of(prompt, image, ASKED)
        if set(prompt.metadata["categories"]) != set(prompt.metadata["questions"]):
            raise ValueError("not every question has a category")
        return asked

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """`dpg`, and each category's share of questions with a yes (NaN without any), whatever these depend on."""
        answers = {number: yes(reply) for number, reply in zip(as_questions(prompt.metadata["questions"]), replies)}
        kept = granted(answers, as_parents(prompt.metadata["parents"]), passed_on=True)
        found = {"dpg": sum(kept.values()) / len(kept)}
        categories = {int(number): name for number, name in prompt.metadata["categories"].items()}
        for category in CATEGORIES:
            mine = [answer for number, answer in answers.items() if categories[number] == category]
            found[f"category-{category}"] = sum(mine) / len(mine) if mine else float("nan")
        return found

    def published(self, prompts: list[Prompt], rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The score times 100, and the share of all questions of each category."""
        found = {"dpg": pooled(rows["dpg"], [1] * len(prompts))}
        for category in CATEGORIES:
            counts = [list(p.metadata["categories"].values()).count(category) for p in prompts]
            found[category] = pooled(rows[f"category-{category}"], counts)
        return found
