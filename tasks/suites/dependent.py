"""Yes-or-no questions of which some depend on others, as in the Davidsonian Scene Graph (arXiv 2310.18235)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.api.task import Prompt
from tasks.vision.judge import Question

Parents = Mapping[int, Sequence[int]]
"""Question -> the questions that it depends on; 0 stands for none."""


def granted(answers: Mapping[int, bool], parents: Parents, passed_on: bool) -> dict[int, bool]:
    """The answers, with no for every question of which a parent was answered no.

    `passed_on`: whether a question whose answer was changed to no counts as no for later questions too (DPG-Bench), or
    only the judge's own answers do (OneIG-Bench).
    """
    changed = dict(answers)
    seen = changed if passed_on else answers
    for question, needed in parents.items():
        if any(parent and not seen[parent] for parent in needed):
            changed[question] = False
    return changed


def check_parents(questions: Mapping[int, str], parents: Parents) -> None:
    """Raise ValueError unless there are questions and every one has its parents, all of them questions."""
    if not questions:
        raise ValueError("there are no questions")
    if set(questions) != set(parents):
        raise ValueError(f"questions {sorted(questions)}, but dependencies of {sorted(parents)}")
    for question, needed in parents.items():
        for parent in needed:
            if parent and parent not in questions:
                raise ValueError(f"question {question} depends on {parent}, which is not there")


def as_questions(given: Mapping) -> dict[int, str]:
    """Number -> question, from JSON, whose keys are text."""
    return {int(number): str(text) for number, text in given.items()}


def as_parents(given: Mapping) -> dict[int, list[int]]:
    """Number -> numbers, from JSON, whose keys are text."""
    return {int(number): [int(parent) for parent in needed] for number, needed in given.items()}


def asked_of(prompt: Prompt, image: int, form: str) -> list[Question]:
    """The prompt's questions about image `image` in their order, each put into `form`. Raises as `check_parents`."""
    questions = as_questions(prompt.metadata["questions"])
    check_parents(questions, as_parents(prompt.metadata["parents"]))
    return [Question(image, form.format(question=text)) for text in questions.values()]
