"""Prompts of photographic backbones, from text files that a user has: one prompt a line, as Flow-GRPO keeps them."""

import csv
import json
import re
import unicodedata
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import UnionType

from bench.api.task import Prompt, Task
from bench.errors import DamagedError, MissingError, UsageError, one_line
from bench.system import files
from bench.weights.checkpoints import refuse_stand_in

SOURCE = {"prompts": "folder with train.txt and test.txt, one prompt a line"}
"""What tasks that read them say of it."""
HELD_OUT = 128
"""Prompts of train.txt that become validation prompts where there is no validation.txt: its last ones."""
HEADS = {"prompt", "prompts", "caption", "captions"}
"""A first line that names one of these as a column is no prompt."""
EDGES = "".join(c for c in map(chr, range(0x3001)) if c.isspace() or unicodedata.category(c) == "Cc") + (
    "\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
    "\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\ufeff"
)
"""What is no part of a prompt where it begins or ends: white space, controls (DOS ended files with Ctrl-Z), and marks
that take no room, byte order marks among them: files joined by `cat` have one inside."""
COMMENT = re.compile(r"//|/\*|#")
OF_JSON = re.compile(r"""[\[\]{}]+,?$|\{\s*["']\w+["']\s*:|\[\s*["'{]|"\w+"\s*:\s*\S""")
"""How a line of JSON, or of what should be it, begins; `[neon] cat` and `{red|green} dog` are prompts."""


def read_prompts(task: str, sources: dict[str, str], check: Callable[[str], object] = str) -> dict[str, list[str]]:
    """Split -> prompts from scorers.<task>.prompts: train.txt, test.txt and, if there, validation.txt.

    `check` raises ValueError for a prompt that the task cannot use. Prompts of test are taken out of the others.
    Raises MissingError where no folder is named, UsageError for a file that is not as described.
    """
    if "prompts" not in sources:
        raise MissingError(
            f"task {task!r} on photographs takes its prompts from files: set scorers.{task}.prompts=FOLDER with "
            f"train.txt and test.txt, one prompt a line (github.com/yifan123/flow_grpo has them in dataset/{task})"
        )
    folder = Path(sources["prompts"])
    test, train = (read_lines(folder / f"{split}.txt", check) for split in ("test", "train"))
    known = set(test)
    train = [prompt for prompt in train if prompt not in known]
    if (folder / "validation.txt").is_file():
        validation = [p for p in read_lines(folder / "validation.txt", check) if p not in known]
        known.update(validation)
        train = [prompt for prompt in train if prompt not in known]
    else:
        train, validation = train[:-HELD_OUT], train[-HELD_OUT:]
    splits = {"train": train, "validation": validation, "test": test}
    for split, prompts in splits.items():
        if not prompts:
            raise UsageError(f"{folder} leaves no {split} prompts: {HELD_OUT} of train.txt are kept for validation")
    return splits


def read_lines(path: Path, check: Callable[[str], object] = str) -> list[str]:
    """Lines that are not empty. Raises UsageError for a file of another kind, and naming the line that `check` refuses
    with a ValueError."""
    try:
        lines = [line.strip(EDGES) for line in files.read_lines(path)]
    except (OSError, DamagedError) as error:
        raise UsageError(f"cannot read prompts from {path}: {one_line(error)}") from error
    if path.is_file():
        refuse_stand_in(path, "file of prompts")
    if (number := next((n for n, line in enumerate(lines, 1) if "\r" in line), 0)) > 0:
        raise UsageError(f"{path}, line {number}: a carriage return ends no line; save it with line feeds (Unix)")
    prompts = [line for line in lines if line]
    if kind := _another_kind(prompts):
        first = lines.index(prompts[0]) + 1
        raise UsageError(f"{path}, line {first}: this is {kind}; one prompt a line is wanted, as plain text")
    for number, line in enumerate(lines, 1):
        if line:
            try:
                check(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    return prompts


def _another_kind(lines: list[str]) -> str | None:
    """What a file is that holds prompts, but not as plain lines. Single odd prompts do not make it that."""
    if lines and all(_holds(line, dict) for line in lines):
        return "a JSON Lines file"
    if lines and lines[0][0] in "[{" and _holds("\n".join(lines), dict | list):
        return "a JSON file"
    if _mostly_json([line for line in lines if not COMMENT.match(line)]):
        return "JSON, by most of its lines"
    columns = re.split(r"[,;\t]", lines[0].lower()) if lines else []
    if HEADS & {name.strip(' "') for name in columns} and all(re.fullmatch(r' *"?\w+"? *', n) for n in columns):
        return f"a table with a line of column names, {lines[0]!r}"
    rows = [_fields(line) for line in lines if line[0] == '"' and '""' in line]
    if rows and all(len(_fields(line)) == 1 for line in lines) and any('"' in row[0] for row in rows):
        return "a CSV file, with doubled quotes"
    return None


def _mostly_json(lines: list[str]) -> bool:
    """A single line in quotes is a prompt; several are a list's."""
    texts = sum(_holds(line.removesuffix(","), str) for line in lines) if len(lines) > 1 else 0
    return 2 * (texts + sum(bool(OF_JSON.match(line)) for line in lines)) > len(lines)


def _holds(text: str, kind: type | UnionType) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except (ValueError, RecursionError):
        return False


def _fields(line: str) -> list[str]:
    """The line as a row of CSV; none where it is not one."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


class PromptFileTask(Task):
    """A task whose prompts are the lines of the files at scorers.<task>.prompts."""

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        return as_prompts(read_prompts(self.name, self.given))

    def prompts(self, split: str) -> list[Prompt]:
        return self._splits[split]


def as_prompts(texts: dict[str, list[str]], stratum: str = "") -> dict[str, list[Prompt]]:
    """Split -> prompts of one stratum."""
    return {split: [Prompt(text, stratum) for text in lines] for split, lines in texts.items()}
