"""Settings as users write them: YAML files, dotted key=value overrides, and merging of sections."""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError

from bench.errors import UsageError, nearest, one_line, unknown
from bench.system.files import read_text

LARGEST = 10_000
"""Maximum number of values in one settings file with its aliases expanded: a few lines of nested aliases can expand to
more than fits in memory."""
DEEPEST = 50
"""Maximum nesting of sections and lists."""
MOST_SEEDS = 10_000
"""Maximum number of seeds of one command."""


class Settings(BaseModel):
    """Base class of sections of settings. Unknown keys are errors, and so are 1.5 for an integer and text or true for a
    number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _numbers_are_said_as_numbers(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        taken = handler(value)
        refuse_converted(value, taken)
        return taken


def refuse_converted(given: Any, taken: Any) -> None:
    """Raise PydanticCustomError if pydantic converted a truth value or text into a number."""
    if isinstance(taken, Mapping) and isinstance(given, Mapping):
        for key in taken.keys() & given.keys():
            refuse_converted(given[key], taken[key])
    elif isinstance(taken, tuple | list) and isinstance(given, Sequence) and not isinstance(given, str):
        for before, after in zip(given, taken):
            refuse_converted(before, after)
    elif isinstance(taken, int | float) and not isinstance(taken, bool) and isinstance(given, bool | str | bytes):
        kind = "a truth value" if isinstance(given, bool) else "text"
        raise PydanticCustomError("no_number", "Input should be a plain decimal number, not {kind}", {"kind": kind})


# Only decimal notation: the resolvers of YAML 1.1 also accept octal, hexadecimal and base-60 numbers.
INTEGER, REAL = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
NUMBERS = {
    INTEGER: r"[-+]?(0|[1-9][0-9]*)$",
    REAL: r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9]+([eE][-+]?[0-9]+)?"
    r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$",
}


class PlainLoader(yaml.SafeLoader):
    """YAML with decimal numbers only.

    YAML 1.1 reads 010 as 8, 1:30 as 90, 0x10 as 16, and 1e-3 as text. Here the first three are text, which numeric
    settings reject, and the last is a number.
    """


PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in NUMBERS.items():
    PlainLoader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))


def read_yaml(path: Path) -> dict:
    """The settings in a YAML file. Raises UsageError if it cannot be read, is not a mapping, or repeats a key."""
    try:
        content = parse_yaml(read_text(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read settings from {path}: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must be a mapping of settings, got {type(content).__name__}")
    return content


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises ValueError with a readable message for anything that settings cannot be."""
    try:
        node = yaml.compose(text, PlainLoader)
        if node is not None:
            _size(node, {}, 0)
        # After `compose`, which fails early on deeply nested brackets.
        for event in yaml.parse(text, PlainLoader):
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise ValueError(f"a tag such as {_written(tag)} is not allowed: write the value without it")
        return yaml.load(text, PlainLoader)  # a SafeLoader, so no object can be constructed
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error
    except RecursionError as error:
        raise ValueError(f"sections are nested more than {DEEPEST} levels deep") from error


def _written(tag: str) -> str:
    """A YAML tag in its short form, such as `!!int`."""
    return tag.replace("tag:yaml.org,2002:", "!!")[:60]


def plain_number(text: str) -> float:
    """The number that a text writes in the notation of settings.

    Raises ValueError for any other text, including what Python's `float` accepts (1_0, non-ASCII digits).
    """
    if not any(re.match(pattern, text) for pattern in NUMBERS.values()):
        raise ValueError(f"{text[:60]!r} is not a plain decimal number")
    return float(text)


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Number of values under a node with aliases expanded. Raises ValueError for too many values or a repeated key."""
    if depth > DEEPEST:
        raise ValueError(f"sections are nested more than {DEEPEST} levels deep")
    if id(node) not in known:
        size = 1
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key.value, Hashable)]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice:
                raise ValueError(f"the key {twice!r} is given twice")
            size += sum(_size(value, known, depth + 1) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(_size(value, known, depth + 1) for value in node.value)
        known[id(node)] = size
    if known[id(node)] > LARGEST:
        raise ValueError(f"it expands to more than {LARGEST:,} values")
    return known[id(node)]


def parse_override(text: str, option: str = "--set") -> dict:
    """Parse "a.b=1" into {"a": {"b": 1}}. `option` is the option's name in messages. Raises UsageError."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(part.strip() for part in parts):
        raise UsageError(f"{option} takes key=value, got {text[:200]!r}")
    if len(parts) > DEEPEST:
        raise UsageError(f"{option} {key.strip()[:60]!r}... has too many levels: no setting is nested that deeply")
    if not value.strip():
        raise UsageError(f"{option} {text[:200]} is empty: give a value, or null for no value")
    try:
        parsed = parse_yaml(value)
    except ValueError as error:
        raise UsageError(f"{option} {text[:200]!r}: the value is not valid YAML: {error}") from error
    for part in reversed(parts):
        parsed = {part: parsed}
    return parsed


def parse_seeds(text: str) -> list[int]:
    """Parse '0-2' or '0,3,5' into seeds. Raises UsageError for other text, a repeated seed, or too many seeds."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_seed(first) or (dash and not _is_seed(last)):
            raise UsageError(f"--seeds takes 0, 0-2 or 0,3,5, below 2^63, got {text[:200]!r}")
        low, high = int(first), int(last or first)
        if high < low:
            raise UsageError(f"--seeds range {part!r} runs backwards")
        if len(seeds) + high - low >= MOST_SEEDS:
            raise UsageError(f"--seeds {text[:200]} names more than {MOST_SEEDS:,} seeds")
        seeds += range(low, high + 1)
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"a seed is named twice in --seeds {text[:200]}")
    return seeds


def ranges(seeds: Sequence[int]) -> str:
    """Ascending seeds as `parse_seeds` reads them: 0, 1, 2 and 5 are '0-2,5'."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _is_seed(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < 2**63


def merge(into: dict, new: dict) -> None:
    """Merge `new` into `into` key by key. Raises UsageError if one has a section where the other has a value."""
    for key, value in new.items():
        if key == "budget" and isinstance(value, dict):
            # A budget replaces the earlier one: only one of its keys may be set.
            into[key] = dict(value)
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
    """A message about the first invalid setting of a model, with the nearest valid key or value.

    `prefix` is the path of sections that the model's keys are under.
    """
    problem = error.errors()[0]
    path = [*prefix, *(str(part) for part in problem["loc"])]
    shown = ".".join(path)[:200]
    if problem["type"] == "extra_forbidden":
        siblings = _fields(root, problem["loc"][:-1])
        known = [".".join([*path[:-1], name]) for name in siblings]
        return str(unknown("key", shown, known))
    if problem["type"] == "model_type":
        return f"{shown} is a section of settings, not a value"
    given = problem["input"]
    got = "" if isinstance(given, dict) else f" (got {repr(given)[:200]})"
    near = _nearest(given, problem["ctx"]["expected"]) if problem["type"] == "literal_error" else ""
    cause = problem["msg"].removeprefix("Value error, ")
    return f"{shown or 'settings'}: {cause}{got}{near}"


def _nearest(given: object, expected: str) -> str:
    """The end of a message: which of the quoted words in pydantic's list is nearest to the given value."""
    near = nearest(str(given), re.findall(r"'([^']*)'", expected))
    return f"; did you mean {near!r}?" if near else ""


def _fields(root: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of a section of a model; empty if the section is not itself a model."""
    section: Any = root
    for part in path:
        field = section.model_fields.get(part) if _is_model(section) else None
        if field:
            # Of a section that may be left out (Section | None), the model.
            kinds = get_args(field.annotation)
            models = [kind for kind in kinds if _is_model(kind)]
            section = models[0] if models and NoneType in kinds else field.annotation
        else:
            # In a mapping or list of models every entry has the last type argument, whatever its key.
            # `...` of a tuple of any length is no type.
            arguments = [part for part in getattr(section, "__args__", ()) if part is not ...]
            section = arguments[-1] if arguments else None
        if section is None:
            return []
    return list(section.model_fields) if _is_model(section) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def flattened(
    section: dict[str, Any], joint: str = ".", whole: tuple[str, ...] = (), prefix: str = ""
) -> dict[str, Any]:
    """Nested settings as a flat mapping from joined keys to values; an empty section counts as a value.

    So do the sections whose keys are in `whole`.
    """
    found: dict[str, Any] = {}
    for name, value in section.items():
        path = f"{prefix}{name}"
        nested = isinstance(value, dict) and value and path not in whole
        found |= flattened(value, joint, whole, f"{path}{joint}") if nested else {path: value}
    return found
