"""DPG-Bench (ELLA, arXiv 2403.05135): dense prompts, judged by yes-or-no questions that depend on each other.

The official judge is mPLUG-large (VQA), which needs modelscope: scores of another judge are another scale, as the
scorer's name says. The official script leaves out the first question of the first prompt, on which others depend; here
it is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from bench.api.task import Prompt
from tasks.suites.dependent import as_parents, as_questions, check_parents, granted
from tasks.suites.suite import MEANS, Suite, sources_of, table_of, with_means, yes
from tasks.vision.judge import Question, Reply

ASKED = "{question} Answer yes or no."
"""mPLUG is asked the bare question; a chat model needs to be told how to answer."""


class DpgBench(Suite):
    """Dense prompts. Reward: the share of questions answered yes, none of whose parents was answered no."""

    name = "dpg"
    version = "1"
    headline = rewarded = "dpg"
    images = 4
    judged_by = "mPLUG-large"
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
            number = row["proposition_id"]
            item.metadata["questions"][number] = row["question_natural_language"]
            item.metadata["parents"][number] = [int(parent) for parent in row["dependency"].split(",")]
            item.metadata["categories"][number] = row["tuple"].split("(")[0].split("-")[0].strip()
        prompts = list(items.values())
        return with_means(prompts, [_counts(list(p.metadata["categories"].values())) for p in prompts])

    def instructions(self) -> tuple[str, ...]:
        """The question's form."""
        return (ASKED,)

    def questions(self, prompt: Prompt, image: int, attempt: int) -> list[Question]:
        """The prompt's questions in their order."""
        asked = as_questions(prompt.metadata["questions"])
        check_parents(asked, as_parents(prompt.metadata["parents"]))
        return [Question(image, ASKED.format(question=text)) for text in asked.values()]

    def mark(self, prompt: Prompt, replies: list[Reply]) -> dict[str, float]:
        """`dpg`; and for each category its share, whose mean over all images is the share of its questions with a yes.

        As published, categories count the judge's own answers, whatever the answers that they depend on.
        """
        answers = {number: yes(reply) for number, reply in zip(as_questions(prompt.metadata["questions"]), replies)}
        kept = granted(answers, as_parents(prompt.metadata["parents"]), passed_on=True)
        found = {"dpg": sum(kept.values()) / len(kept)}
        categories = {int(number): name for number, name in prompt.metadata["categories"].items()}
        for category, mean in prompt.metadata.get(MEANS, {}).items():
            mine = sum(answer for number, answer in answers.items() if categories[number] == category)
            found[f"category-{category}"] = mine / mean
        return found


def _counts(names: list[str]) -> dict[str, float]:
    return {name: float(names.count(name)) for name in names}
