"""Prompts for photographic backbones, from the user's text files: one prompt per line, as in Flow-GRPO's repository."""

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

SOURCE = {"prompts": "folder with train.txt and test.txt, one prompt per line"}
"""The setting of tasks that read prompts from files."""
HELD_OUT = 128
"""Number of prompts at the end of train.txt that are used for validation if there is no validation.txt."""
HEADS = {"prompt", "prompts", "caption", "captions"}
"""Column names by which a first line is recognised as a table heading."""
_BLANKS = (c for c in map(chr, range(0x3001)) if c.isspace() or unicodedata.category(c) == "Cc")
EDGES = "".join(_BLANKS) + (
    "\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
    "\u2060\u2061\u2062\u2063\u2064\u2066\u2067\u2068\u2069\ufeff"
)
"""Characters stripped from both ends of a prompt: white space, control characters (DOS ended files with Ctrl-Z) and
marks without width. These include byte order marks, which files joined by `cat` have on inner lines."""
COMMENT = re.compile(r"//|/\*|#")
OF_JSON = re.compile(r"""[\[\]{}]+,?$|\{\s*["']\w+["']\s*:|\[\s*["'{]|"\w+"\s*:\s*\S""")
"""How a line of JSON, valid or not, starts. It must not match the prompts `[neon] cat` and `{red|green} dog`."""


def read_prompts(task: str, sources: dict[str, str], check: Callable[[str], object] = str) -> dict[str, list[str]]:
    """Split -> prompts from the folder scorers.<task>.prompts: train.txt, test.txt and optionally validation.txt.

    `check` raises ValueError for a prompt that the task cannot use. Test prompts are removed from the other splits.
    Raises MissingError if no folder is set, UsageError for a file that is not plain prompts.
    """
    if "prompts" not in sources:
        raise MissingError(
            f"task {task!r} on photographs reads its prompts from files: set scorers.{task}.prompts=FOLDER with "
            f"train.txt and test.txt, one prompt per line (github.com/yifan123/flow_grpo has them in dataset/{task})"
        )
    folder = Path(sources["prompts"])
    test, train = (read_lines(folder / f"{split}.txt", check) for split in ("test", "train"))
    # A prompt that is in several files stays in test, or else in validation.
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
            raise UsageError(f"{folder} leaves no {split} prompts: {HELD_OUT} of train.txt are used for validation")
    return splits


def read_lines(path: Path, check: Callable[[str], object] = str) -> list[str]:
    """The non-empty lines of a file, stripped.

    Raises UsageError for a file that is not plain lines of prompts, and for a line for which `check` raises ValueError.
    """
    try:
        lines = [line.strip(EDGES) for line in files.read_lines(path)]
    except (OSError, DamagedError) as error:
        raise UsageError(f"cannot read prompts from {path}: {one_line(error)}") from error
    if path.is_file():
        refuse_stand_in(path, "file of prompts")
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            raise UsageError(
                f"{path}, line {number}: a carriage return is not a line end; save the file with line feeds (Unix)"
            )
    prompts = [line for line in lines if line]
    kind = _another_kind(prompts)
    if kind:
        first = lines.index(prompts[0]) + 1
        raise UsageError(f"{path}, line {first}: this is {kind}; write one prompt per line, as plain text")
    for number, line in enumerate(lines, 1):
        if line:
            try:
                check(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    return prompts


def _another_kind(lines: list[str]) -> str | None:
    """The kind of a file that contains prompts in another format; None for plain lines, even if a few look odd."""
    if lines and all(_holds(line, dict) for line in lines):
        return "a JSON Lines file"
    if lines and lines[0][0] in "[{" and _holds("\n".join(lines), dict | list):
        return "a JSON file"
    if _mostly_json([line for line in lines if not COMMENT.match(line)]):
        return "JSON, to judge by most of its lines"
    columns = re.split(r"[,;\t]", lines[0].lower()) if lines else []
    headed = bool(HEADS & {name.strip(' "') for name in columns})
    if headed and all(re.fullmatch(r' *"?\w+"? *', name) for name in columns):
        return f"a table with a line of column names, {lines[0]!r}"
    # A file with a single column, whose quoted prompts have quotes inside.
    rows = [_fields(line) for line in lines if line[0] == '"' and '""' in line]
    single = bool(rows) and all(len(_fields(line)) == 1 for line in lines)
    if single and any('"' in row[0] for row in rows):
        return "a CSV file, with doubled quotes"
    return None


def _mostly_json(lines: list[str]) -> bool:
    """Whether most lines are JSON. A line in quotes counts as an item of a list, unless it is the only line."""
    texts = sum(_holds(line.removesuffix(","), str) for line in lines) if len(lines) > 1 else 0
    matches = sum(bool(OF_JSON.match(line)) for line in lines)
    return 2 * (texts + matches) > len(lines)


def _holds(text: str, kind: type | UnionType) -> bool:
    try:
        return isinstance(json.loads(text), kind)
    except (ValueError, RecursionError):
        return False


def _fields(line: str) -> list[str]:
    """The line's fields as a row of CSV; empty if it is not one."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


class PromptFileTask(Task):
    """A task whose prompts are the lines of the files in the folder scorers.<task>.prompts."""

    @cached_property
    def _splits(self) -> dict[str, list[Prompt]]:
        return as_prompts(read_prompts(self.name, self.given))

    def prompts(self, split: str) -> list[Prompt]:
        """Prompts of a split. Raises MissingError if no folder is set, UsageError for unusable files."""
        return self._splits[split]


def as_prompts(texts: dict[str, list[str]], stratum: str = "") -> dict[str, list[Prompt]]:
    """Split -> prompts, all of the same stratum, from split -> texts."""
    return {split: [Prompt(text, stratum) for text in lines] for split, lines in texts.items()}
