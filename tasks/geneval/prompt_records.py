"""Checks that GenEval's rules can judge a prompt record: its format and its vocabulary.

A record is {"tag", "include": [{"class", "count", ["color"], ["position": [relation, clause]]}, ...],
["exclude": [{"class", "count"}, ...]], "prompt"}. With a word that the
detector or the rules can never report, every image of the prompt would silently count as wrong.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from bench.errors import UsageError, unknown
from tasks.geneval.prompts import RELATIONS, TAGS, Vocabulary
from tasks.geneval.rules import MAX_OBJECTS

REQUIRED = ("class", "count")
FORMS = {"include": (*REQUIRED, "color", "position"), "exclude": REQUIRED}
"""List in a record -> the keys that its clauses may have."""
KEYS = ("tag", "include", "exclude", "prompt")
"""Other keys are ignored, unless they look like a misspelling of one of these."""
NEEDED = {"colors": "color", "color_attr": "color", "position": "position"}
"""Tag -> the key that at least one clause must have; without it the tag's property would not be tested. For counting
see `_check_limits`."""


def check_record(record: Any, vocabulary: Vocabulary) -> None:
    """Raise UsageError, with the field and the nearest valid value, for a record in a wrong format or vocabulary."""
    if not isinstance(record, dict):
        raise UsageError(f"a prompt record is an object with tag, include and prompt, not {_shown(record)}")
    absent = [key for key in KEYS if key not in record]
    for key in record:
        if key not in KEYS and (meant := get_close_matches(key.lower(), absent, 1, cutoff=0.75)):
            raise UsageError(f"unknown key {key!r} in the record; did you mean {meant[0]!r}?")
    for key in ("prompt", "tag", "include"):
        if key not in record:
            raise UsageError(f"the record has no {key!r}")
    if not isinstance(record["prompt"], str) or not record["prompt"].strip():
        raise UsageError(f"prompt should be text, not {_shown(record['prompt'])}")
    _one_of(TAGS, record["tag"], "tag")
    if record["include"] == []:
        raise UsageError("include is empty: it should be a list of at least one {class, count}")
    for name in FORMS:
        clauses = record.get(name, [])
        if not isinstance(clauses, list):
            raise UsageError(f"{name} should be a list of {{class, count}}, not {_shown(clauses)}")
        for place, clause in enumerate(clauses):
            _check_clause(clause, name, place, vocabulary)
    needed = NEEDED.get(record["tag"])
    if needed and not any(needed in clause for clause in record["include"]):
        raise UsageError(f"the tag {record['tag']!r} needs a clause of include with {needed!r}; there is none")
    _check_limits(record)


def _check_limits(record: dict) -> None:
    """Raise UsageError if `exclude` contradicts `include`, and for counting without `exclude`.

    Only `exclude` makes too many objects wrong: `include` asks for at least `count`.
    """
    asked: dict[str, int] = {}
    for clause in record["include"]:
        asked[clause["class"]] = max(clause["count"], asked.get(clause["class"], 0))
    limits = record.get("exclude", [])
    for place, clause in enumerate(limits):
        if clause["count"] <= (wanted := asked.get(clause["class"], 0)):
            raise UsageError(
                f"exclude[{place}].count should be more than the {wanted} of {clause['class']!r} that include asks "
                f"for, not {clause['count']}: every image would be wrong"
            )
    unlimited = asked.keys() - {clause["class"] for clause in limits}
    if record["tag"] == "counting" and unlimited:
        name = min(unlimited)
        raise UsageError(
            f"the tag 'counting' needs an exclude of {name!r}, as {{class: {name}, count: {asked[name] + 1}}}: without "
            "it any larger number would be correct"
        )


def _check_clause(clause: Any, of: str, place: int, vocabulary: Vocabulary) -> None:
    where = f"{of}[{place}]"
    if not isinstance(clause, dict):
        raise UsageError(f"{where} should be an object with class and count, not {_shown(clause)}")
    for key in clause:
        _one_of(FORMS[of], key, f"key in {where}:")
    for key in REQUIRED:
        if key not in clause:
            raise UsageError(f"{where} has no {key}")
    _one_of(vocabulary.names, clause["class"], f"{where}.class", vocabulary.aliases)
    count = clause["count"]
    # In Python true is an integer.
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_OBJECTS:
        limit = f"from 1 to {MAX_OBJECTS}, the most that are kept"
        raise UsageError(f"{where}.count should be a whole number {limit}, not {_shown(count)}")
    if "color" in clause:
        _one_of(vocabulary.colours, clause["color"], f"{where}.color")
    if "position" in clause:
        _check_position(clause["position"], place, f"{where}.position")


def _check_position(position: Any, place: int, where: str) -> None:
    if not isinstance(position, list) or len(position) != 2:
        raise UsageError(f"{where} should be [relation, number of an earlier clause], not {_shown(position)}")
    relation, target = position
    _one_of(RELATIONS, relation, f"{where}[0]")
    if not isinstance(target, int) or isinstance(target, bool) or not 0 <= target < place:
        earlier = f"0 to {place - 1}" if place else "but there is none before the first"
        raise UsageError(f"{where}[1] should be the number of an earlier clause ({earlier}), not {_shown(target)}")


def _one_of(known: Iterable[str], value: Any, where: str, aliases: Mapping[str, str] | None = None) -> None:
    """Raise UsageError for a value that is not in `known`; `aliases` maps words of other vocabularies to known ones."""
    if not isinstance(value, str):
        raise UsageError(f"{where} should be text, not {_shown(value)}")
    if value in known:
        return
    if meant := (aliases or {}).get(value):
        raise UsageError(f"unknown {where} {value!r}; did you mean {meant!r}?")
    raise unknown(where, value, known)


def _shown(value: Any) -> str:
    """A wrong value, shortened for an error message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
