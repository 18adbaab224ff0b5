"""Prompts of photographic backbones, from text files that a user has: one prompt a line, as Flow-GRPO keeps them."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from bench.errors import MissingError, UsageError, one_line
from bench.task import Prompt, Task

SOURCE = {"prompts": "folder with train.txt and test.txt, one prompt a line"}
"""What tasks that read them say of it."""
HELD_OUT = 128
"""Prompts of train.txt that become validation prompts where there is no validation.txt: its last ones."""


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
    """Lines that are not empty. Raises UsageError naming the line that `check` refuses with a ValueError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read prompts from {path}: {one_line(error)}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                check(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error
    return [line.strip() for line in lines if line.strip()]


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
