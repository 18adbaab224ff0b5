"""Settings as users write them: YAML files, dotted key=value, sections laid over one another."""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError

from bench.errors import UsageError, nearest, one_line, unknown
from bench.system.files import read_text

LARGEST = 10_000
"""Values in one settings file, aliases written out: a few lines of aliases can stand for more than any memory holds."""
DEEPEST = 50
"""Levels of sections and lists in one another."""
MOST_SEEDS = 10_000


class Settings(BaseModel):
    """Base of sections of settings: unknown keys are refused, 1.5 is not silently an int, nor true or text a number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _numbers_are_said_as_numbers(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        taken = handler(value)
        refuse_converted(value, taken)
        return taken


def refuse_converted(given: Any, taken: Any) -> None:
    """Raise PydanticCustomError where pydantic made a number of a truth value or of text."""
    if isinstance(taken, Mapping) and isinstance(given, Mapping):
        for key in taken.keys() & given.keys():
            refuse_converted(given[key], taken[key])
    elif isinstance(taken, tuple | list) and isinstance(given, Sequence) and not isinstance(given, str):
        for before, after in zip(given, taken):
            refuse_converted(before, after)
    elif isinstance(taken, int | float) and not isinstance(taken, bool) and isinstance(given, bool | str | bytes):
        kind = "a truth value" if isinstance(given, bool) else "text"
        raise PydanticCustomError("no_number", "Input should be a plain decimal number, not {kind}", {"kind": kind})


INTEGER, REAL = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
NUMBERS = {
    INTEGER: r"[-+]?(0|[1-9][0-9]*)$",
    REAL: r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9]+([eE][-+]?[0-9]+)?"
    r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$",
}


class PlainLoader(yaml.SafeLoader):
    """YAML whose numbers are decimal ones. YAML 1.1 also takes 010 for 8, 1:30 for 90, 0x10 for 16 and 1e-3 for text:
    here the first three are text, which no number is made of, and the last is the number."""


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in NUMBERS.items():
    PlainLoader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))


def read_yaml(path: Path) -> dict:
    """A YAML file of settings. Raises UsageError for one that cannot be read or that says a thing twice."""
    try:
        content = parse_yaml(read_text(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read settings from {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a mapping of settings, got {type(content).__name__}")
    return content


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises ValueError, in words, for anything that settings cannot be."""
    try:
        node = yaml.compose(text, PlainLoader)
        if node is not None:
            _size(node, {}, 0)
        for event in yaml.parse(text, PlainLoader):  # after the above, which ends early where brackets are deep
            if (tag := getattr(event, "tag", None)) is not None:
                raise ValueError(f"a tag such as {_written(tag)} is not taken: write the value alone")
        return yaml.load(text, PlainLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error
    except RecursionError as error:
        raise ValueError(f"sections lie more than {DEEPEST} deep in one another") from error


def _written(tag: str) -> str:
    """A tag of YAML as people write it."""
    return tag.replace("tag:yaml.org,2002:", "!!")[:60]


def plain_number(text: str) -> float:
    """A number that is written as settings write theirs. Raises ValueError for other text, as 1_0 and other digits."""
    if not any(re.match(pattern, text) for pattern in NUMBERS.values()):
        raise ValueError(f"{text[:60]!r} is no plain decimal number")
    return float(text)


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values under a node, aliases written out; raises ValueError for too many, and for a key that is there twice."""
    if depth > DEEPEST:
        raise ValueError(f"sections lie more than {DEEPEST} deep in one another")
    if id(node) not in known:
        size = 1
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key.value, Hashable)]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise ValueError(f"{twice!r} is said twice")
            size += sum(_size(value, known, depth + 1) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(_size(value, known, depth + 1) for value in node.value)
        known[id(node)] = size
    if known[id(node)] > LARGEST:
        raise ValueError(f"it stands for more than {LARGEST:,} values")
    return known[id(node)]


def parse_override(text: str, option: str = "--set") -> dict:
    """ "a.b=1" -> {"a": {"b": 1}}; `option` is what the user wrote it with. Raises UsageError."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(part.strip() for part in parts):
        raise UsageError(f"{option} takes key=value, got {text[:200]!r}")
    if len(parts) > DEEPEST:
        raise UsageError(f"{option} {key.strip()[:60]!r}...: no setting lies that deep")
    if not value.strip():
        raise UsageError(f"{option} {text[:200]} is empty: give a value; null is none")
    try:
        parsed = parse_yaml(value)
    except ValueError as error:
        raise UsageError(f"{option} {text[:200]!r}: the value is not valid YAML: {error}") from error
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def parse_seeds(text: str) -> list[int]:
    """'0-2' or '0,3,5' -> seeds. Raises UsageError for anything else, a seed named twice, or too many of them."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_seed(first) or (dash and not _is_seed(last)):
            raise UsageError(f"--seeds takes 0, 0-2 or 0,3,5, below 2^63, got {text[:200]!r}")
        if dash and int(last) < int(first):
            raise UsageError(f"--seeds range {part!r} runs backwards")
        if len(seeds) + int(last or first) - int(first) >= MOST_SEEDS:
            raise UsageError(f"--seeds {text[:200]} names more than {MOST_SEEDS:,} seeds")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"a seed is named twice in --seeds {text[:200]}")
    return seeds


def _is_seed(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < 2**63


def merge(into: dict, new: dict) -> None:
    """Lay sections over others, key by key. Raises UsageError where one has a section and the other a value."""
    for key, value in new.items():
        if key == "budget" and isinstance(value, dict):
            into[key] = dict(value)  # one budget replaces another: only one of its keys may be set
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        elif isinstance(value, dict):
            into[key] = {}
            merge(into[key], value)
        elif key == "budget" or isinstance(into.get(key), dict):
            raise UsageError(f"{key!r} is a section of settings, not a value")
        else:
            into[key] = value


def first_problem(error: ValidationError, root: type[BaseModel], prefix: tuple[str, ...] = ()) -> str:
    """The first thing wrong with settings of a model, whose keys stand under `prefix`; names the nearest valid key."""
    problem = error.errors()[0]
    path = [*prefix, *(str(part) for part in problem["loc"])]
    shown = ".".join(path)[:200]
    if problem["type"] == "extra_forbidden":
        known = [".".join([*path[:-1], name]) for name in _fields(root, problem["loc"][:-1])]
        return str(unknown("key", shown, known))
    if problem["type"] == "model_type":
        return f"{shown} is a section of settings, not a value"
    given = f" (got {repr(problem['input'])[:200]})" if not isinstance(problem["input"], dict) else ""
    near = _nearest(problem["input"], problem["ctx"]["expected"]) if problem["type"] == "literal_error" else ""
    said = problem["msg"].removeprefix("Value error, ")
    return f"{shown or 'settings'}: {said}{given}{near}"


def _nearest(given: object, expected: str) -> str:
    """The one of pydantic's list of quoted words that is nearest to what was given, as the end of a message."""
    near = nearest(str(given), re.findall(r"'([^']*)'", expected))
    return f"; did you mean {near!r}?" if near else ""


def _fields(root: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that a section of a model knows; none where the section is no model of its own."""
    section: Any = root
    for part in path:
        field = section.model_fields.get(part) if _is_model(section) else None
        # A mapping or list of models: whatever the key, the section is of the last type that is named.
        section = field.annotation if field else next(iter(getattr(section, "__args__", ())[-1:]), None)
        if section is None:
            return []
    return list(section.model_fields) if _is_model(section) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
