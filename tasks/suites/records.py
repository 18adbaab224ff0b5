"""What the suites' prompts must have in their metadata, whoever wrote it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Number = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}$")]
"""A question's number: a key of a JSON object is text."""

Skill = Literal["object", "attribute", "count", "position", "verb"]
"""GenEval 2's skills."""


class SuiteRecord(BaseModel):
    """Metadata of any suite. Other keys are ignored; values are not converted."""

    model_config = ConfigDict(strict=True)


class SoftTifaRecord(SuiteRecord):
    """GenEval 2: questions with the right answers, and the skill that each tests."""

    vqa_list: Annotated[list[Annotated[list[Text], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    skills: list[Skill]


class DependentRecord(SuiteRecord):
    """Yes-or-no questions by number, with the numbers of the questions that each depends on (0 for none)."""

    questions: Annotated[dict[Number, Text], Field(min_length=1)]
    parents: dict[Number, list[Annotated[int, Field(ge=0)]]]


class CategorisedRecord(DependentRecord):
    """DPG-Bench: also each question's category."""

    categories: dict[Number, Text]


class ClassedRecord(DependentRecord):
    """OneIG-Bench's alignment: also the prompt's class."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    kind: Literal["anime", "human", "object"] = Field(alias="class")


class OneTextRecord(SuiteRecord):
    """OneIG-Bench's rendered text."""

    text: Text


class SeveralTextsRecord(SuiteRecord):
    """LongText-Bench's rendered texts."""

    text: Annotated[list[str], Field(min_length=1)]


class AnsweredRecord(SuiteRecord):
    """TIIF-Bench: yes-or-no questions with their right answers."""

    questions: Annotated[list[Text], Field(min_length=1)]
    answers: list[Literal["yes", "no"]]


class PhrasesRecord(SuiteRecord):
    """T2I-CompBench: noun phrases. A prompt without any counts as shown, as published."""

    phrases: list[Text]
