"""One word for one thing: a class's name says which one it is, without its module."""

import ast
from collections import defaultdict
from pathlib import Path

PROJECT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
PACKAGES = ("bench", "methods", "tasks", "report", "sweeps")


def names(packages: tuple[str, ...]) -> dict[str, list[str]]:
    """Class name -> the files that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for package in packages:
        for path in sorted((PROJECT / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(str(path.relative_to(PROJECT)))
    return found


def test_no_two_classes_have_one_name() -> None:
    found = names(PACKAGES)
    assert len(found) > 100
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
