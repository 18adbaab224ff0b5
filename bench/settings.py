"""Settings as users write them: YAML files, dotted key=value, sections laid over one another."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bench.errors import UsageError, unknown


def read_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read preset {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"preset {path} must be a mapping of settings, got {type(content).__name__}")
    return content


def parse_override(text: str) -> dict:
    """ "a.b=1" -> {"a": {"b": 1}}. Raises UsageError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set takes key=value, got {text!r}")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {text!r}: the value is not valid YAML") from error
    if isinstance(parsed, str):
        parsed = as_number(parsed)
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


def as_number(text: str) -> str | float:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def parse_seeds(text: str) -> list[int]:
    """'0-2' or '0,3,5' -> seeds. Raises UsageError for anything else, or a seed named twice."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds takes 0, 0-2 or 0,3,5, got {text!r}")
        if dash and int(last) < int(first):
            raise UsageError(f"--seeds range {part!r} runs backwards")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"a seed is named twice in --seeds {text}")
    return seeds


def merge(into: dict, new: dict) -> None:
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
    if problem["type"] == "extra_forbidden":
        section: Any = root
        for part in problem["loc"][:-1]:
            section = section.model_fields[part].annotation
        return str(unknown("key", ".".join(path), [".".join([*path[:-1], name]) for name in section.model_fields]))
    if problem["type"] == "model_type":
        return f"{'.'.join(path)} is a section of settings, not a value"
    given = f" (got {problem['input']!r})" if not isinstance(problem["input"], dict) else ""
    return f"{'.'.join(path) or 'settings'}: {problem['msg']}{given}"
