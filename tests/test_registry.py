"""Packages that are broken, or take a name that is taken: what is named is refused in one line, all else goes on."""

import sys
from importlib.metadata import EntryPoint
from typing import Any, get_args

import pytest

from bench import registry
from bench.cli.app import main
from bench.errors import MissingError, UsageError

MODULES = {
    "raises": "raise RuntimeError('at import')",
    "exits": "import sys; sys.exit(3)",
    "lacks": "",
    "number": "nothing = 5",
    "function": "def nothing(*_):\n    return 5",
    "missing": "import surely_not_installed",
    "fails": "def nothing(*_):\n    raise RuntimeError('no')",
    "half": "from bench.api.task import Task\nclass nothing(Task):\n    name = version = 'x'",
}


class Package:
    """A distribution with a name."""

    def __init__(self, name: str):
        self.name = name


@pytest.fixture
def register(monkeypatch, tmp_path):
    """Adds entry points of a package `stranger`: (kind, name, value)."""
    for name, text in MODULES.items():
        (tmp_path / f"stranger_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    real = registry.entry_points

    def add(*points: tuple[str, str, str]) -> None:
        def both(group: str):
            added = [
                EntryPoint(n, v, group)._for(Package("stranger")) for k, n, v in points if registry.GROUPS[k] == group
            ]
            return [*real(group=group), *added]

        monkeypatch.setattr(registry, "entry_points", both)

    registry._points.cache_clear()
    registry._say.cache_clear()
    yield add
    registry._points.cache_clear()


def call(words: str, monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["bench", *words.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0, *capsys.readouterr()


CLASSES = {"function", "half", "fails"}
"""What commands and backbones could be: they are called."""


@pytest.mark.parametrize(
    ("how", "kind"),
    [(how, kind) for how in MODULES for kind in registry.GROUPS if how not in CLASSES or kind in registry.BASES],
)
def test_what_is_broken_says_whose_it_is(how: str, kind: str, register) -> None:
    register((kind, "theirs", f"stranger_{how}:nothing"))
    with pytest.raises(MissingError, match=f"{kind} 'theirs' of stranger \\(stranger_{how}:nothing\\) ") as refused:
        registry.find(kind, "theirs")
    assert "\n" not in str(refused.value) and "uninstall" in str(refused.value)


@pytest.mark.parametrize("how", ["function", "fails"])
def test_a_backbone_that_gives_no_descriptor(how: str, register, tmp_path, monkeypatch, capsys) -> None:
    register(("backbone", "theirs", f"stranger_{how}:nothing"))
    code, _, err = call("run --method merge --backbone theirs --dry-run", monkeypatch, capsys)
    assert code == 3 and err.count("\n") == 1 and "backbone 'theirs' of stranger" in err, err
    code, out, err = call("list backbones", monkeypatch, capsys)
    assert code == 0 and "micro" in out and err.startswith("left out: backbone 'theirs' of stranger"), err


def test_what_a_class_lacks_is_named(register) -> None:
    register(("task", "theirs", "stranger_half:nothing"))
    with pytest.raises(MissingError, match="lacks headline, prompts, score"):
        registry.find("task", "theirs")


@pytest.mark.parametrize(
    "words",
    [
        "run --method merge --tasks all --dry-run",
        "run --method merge --dry-run",
        "list tasks",
        "list methods",
        "list backbones",
        "doctor",
        "--help",
    ],
)
@pytest.mark.parametrize("how", ["raises", "missing", "number"])
def test_commands_that_do_not_name_it_go_on(how: str, words: str, register, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    register(*((kind, "theirs", f"stranger_{how}:nothing") for kind in registry.GROUPS))
    code, out, err = call(words, monkeypatch, capsys)
    assert code == 0, err
    told = err.splitlines()
    kinds = 2 if words in ("list backbones", "list tasks") else 1  # these also list families, and feature spaces
    assert len(told) <= kinds and all(line.startswith("left out: ") for line in told)
    if words.startswith("list") or "--tasks" in words:
        assert len(told) == kinds
    if words == "--help":
        assert "theirs" in out


def test_a_command_is_imported_when_it_is_called(register, tmp_path, monkeypatch, capsys) -> None:
    register(("command", "theirs", "stranger_raises:nothing"))
    code, _, err = call("theirs", monkeypatch, capsys)
    assert code == 3 and err.count("\n") == 1 and "RuntimeError: at import" in err


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("task", "ocr", "run --method merge --tasks ocr --dry-run"),
        ("task", "ocr", "run --method merge --tasks all --dry-run"),
        ("method", "merge", "run --method merge --dry-run"),
        ("method", "merge", "compare --methods all"),
        ("backbone", "micro", "run --method merge --dry-run"),
        ("command", "run", "run --method merge --dry-run"),
        ("command", "report", "report results"),
    ],
)
def test_a_name_that_is_taken_replaces_nothing(
    kind: str, name: str, words: str, register, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    register((kind, name, "stranger_function:nothing"))
    code, _, err = call(words, monkeypatch, capsys)
    assert code == 2 and err.count("\n") == 1 and "stranger (stranger_function:nothing)" in err, err
    assert repr(name) in err


def test_a_name_that_is_taken_is_marked_in_lists_and_hurts_no_other(register, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    register(*((kind, name, "stranger_function:nothing") for kind, name in
               [("task", "ocr"), ("method", "merge"), ("backbone", "sd3"), ("command", "report")]))  # fmt: skip
    for what, name in {"tasks": "ocr", "methods": "merge", "backbones": "sd3"}.items():
        code, out, _ = call(f"list {what}", monkeypatch, capsys)
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert code == 0 and "registered more than once" in line and "stranger" in line
    assert call("run --method opd_analytic --tasks geneval --dry-run", monkeypatch, capsys)[0] == 0


def test_one_object_by_two_packages_is_one(register) -> None:
    register(("task", "ocr", "tasks.ocr.task:Ocr"))
    assert registry.find("task", "ocr").name == "ocr"


@pytest.mark.parametrize("name", ["all", "ocr"])
def test_all_stands_alone(name: str) -> None:
    with pytest.raises(UsageError, match="'all' cannot be combined"):
        registry.task_names([name, "all"])


def test_settings_that_choose_a_published_method_are_listed_once_with_their_source(capsys) -> None:
    from bench.cli.list import print_list
    from methods.allocation import AllocationName
    from methods.combining import RULES
    from methods.rl.method import ENGINES

    print_list("methods")
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    told = dict(lines)
    assert len(told) == len(lines)
    for name, engine in ENGINES.items():
        assert told[f"params.engine={name}"] == engine.source
    for name, rule in RULES.items():
        assert told[f"params.combine={name}"] == rule.source
    assert {f"params.allocation={name}" for name in get_args(AllocationName)} - told.keys() == {"params.allocation=equal"}
    for method in registry.registered("method"):
        options = registry.find("method", method).Options
        for setting in registry.find("method", method).all_variants():
            key, _, value = setting.removeprefix("params.").partition("=")
            # What is listed can be set.
            section: Any = value or 0.5
            for part in reversed(key.split(".")):
                section = {part: section}
            options.model_validate(section)
