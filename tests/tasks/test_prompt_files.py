"""Prompt files as users have them: marks of editors, odd line ends, other formats under the name .txt."""

from pathlib import Path

import pytest

from bench.errors import MissingError, UsageError
from tasks.ocr.formula import ocr_reward, plain, target_text
from tasks.ocr.task import Ocr
from tasks.pickscore.task import PickScore
from tasks.prompt_files import read_lines

TRAIN = "".join(f'poster {i} reading "{i}"\n' for i in range(200))


def folder_with(folder: Path, test: str | bytes) -> dict[str, str]:
    (folder / "train.txt").write_text(TRAIN, encoding="utf-8")
    (folder / "test.txt").write_bytes(test if isinstance(test, bytes) else test.encode())
    return {"prompts": str(folder)}


def texts(task: type, folder: Path, test: str | bytes, split: str = "test") -> list[str]:
    return [p.text for p in task("photo", folder_with(folder, test)).prompts(split)]


def test_byte_order_marks_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    marked = '\ufeffposter 3 reading "3"\n\ufeffposter 4 reading "4"\n'  # two files joined
    assert texts(PickScore, tmp_path, marked) == ['poster 3 reading "3"', 'poster 4 reading "4"']
    left = texts(PickScore, tmp_path, marked, "train")
    assert not {'poster 3 reading "3"', 'poster 4 reading "4"'} & set(left)


@pytest.mark.parametrize("char", list("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"))
def test_a_line_ends_in_a_line_feed_alone(char: str, tmp_path: Path) -> None:
    assert texts(PickScore, tmp_path, f"castle at dusk,{char}oil on canvas\r\nfox\n") == [
        f"castle at dusk,{char}oil on canvas",
        "fox",
    ]


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ('{"prompt": "a sign that says \\"OPEN\\"", "text": "OPEN"}\n', "line 1: this is a JSON Lines file"),
        ('\n{"text": "a \\"A\\""}\n{"text": "a \\"B\\""}\n', "line 2: this is a JSON Lines file"),
        ('[\n "a sign that says \\"OPEN\\""\n]\n', "line 1: this is a JSON file"),
        ('{\n"a": 1}\n', "line 1: this is a JSON file"),
        ('"a sign that says ""OPEN"""\n', "line 1: this is a CSV file"),
        ('a cat\n"a sign that says ""OPEN"""\n', "line 1: this is a CSV file"),
        ("prompt\na cat\n", "line 1: this is a table with a line of column names, 'prompt'"),
        ("id,Prompt\n1,a cat\n", "column names"),
        ("caption\turl\na cat\thttp://x\n", "column names"),
        ('{"prompt": "a \\"A\\""},\n{"prompt": "a \\"B\\""},\n', "line 1: this is JSON, to judge by most of its lines"),
        ('// signs\n[\n  "a \\"A\\"",\n  "a \\"B\\"",\n]\n', "line 1: this is JSON, to judge by most of its lines"),
        ('# signs\n{"prompt": "a"}\n{"prompt": "b"}\n', "this is JSON, to judge by most"),
        ("{'prompt': 'a cat'}\n{'prompt': 'a dog'}\n", "this is JSON, to judge by most"),
        ('{\n "prompt": "a cat",\n "tag": 1,\n', "this is JSON, to judge by most"),
        ('"a cat"\n"a dog"\n', "this is JSON, to judge by most"),
        ('a "A"\rb "B"\r', "line 1: a carriage return is not a line end"),
        ('a "A"\nb "B"\0\n', "line 2 contains zero bytes"),
        ('a "A"\n'.encode("utf-16-le"), "looks like UTF-16"),
        ("<!DOCTYPE html>\n<p>not found</p>\n", "is not a valid file of prompts: it is a web page"),
        (b"\xff\xfea\x00", "cannot read prompts from .*test.txt: .* is not UTF-8 text"),
    ],
)
def test_files_of_another_kind_are_named(test: str | bytes, said: str, tmp_path: Path) -> None:
    for task in (Ocr, PickScore):
        with pytest.raises(UsageError, match=said):
            texts(task, tmp_path, test)


def test_a_pointer_to_a_file_is_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="Git-LFS pointer"):
        texts(PickScore, tmp_path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize("edge", [*"\u200b\u200d\u2060\ufeff\u00ad\x1a", "\u200b\ufeff \u200b"])
def test_marks_around_a_prompt_are_no_part_of_it(edge: str, tmp_path: Path) -> None:
    test = f'{edge}poster 3 reading "3"{edge}\n{edge}\n'
    assert texts(PickScore, tmp_path, test) == ['poster 3 reading "3"']
    assert 'poster 3 reading "3"' not in texts(PickScore, tmp_path, test, "train")


@pytest.mark.parametrize(
    "lines",
    [
        ["a flag \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "a heart \u2764\ufe0f"],
        ["#1 fan, a mug", "// a comment in neon"],
        ['"stop" and "go"', '"left" or "right"'],
        ["<lora:x:1> a cat", "<b> in bold"],
        ['{"prompt": "as people paste it"}', "a plain one"],
        ["[neon] cat, [red:blue:0.5]", "{red|green} dog"],
        ['"To be, or not to be"'],
        ['"a ""quoted"" cat"', "a cat, a dog"],
        ["a prompt about captions, prompt"],
        ["[1] first", "[2] second"],
    ],
)
def test_odd_prompts_among_plain_ones_are_prompts(lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\n".join(lines), encoding="utf-8")
    assert read_lines(tmp_path / "test.txt") == lines


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('a sign that says \\"OPEN\\"', "without backslashes"),
        ('a 5" wide sign that says "OPEN"', "inches"),
        ('a 12" x 5" sign that says "OPEN"', "inches"),
        ('a sign that says "OPEN", 12" wide', "inches"),
        ('a sign that says ""OPEN""', "doubled"),
        ('{"prompt": "a sign", "text": "OPEN"}', "not JSON"),
        ("a sign that says “OPEN”", "double quotes"),
        ('"a sign that says OPEN"', "not the whole prompt"),
        ('  "a sign that says OPEN".', "not the whole prompt"),
        ('"a sign that says “OPEN”" in red', "only straight double quotes"),
        ('a poster of "The Band" that says “OPEN”', "only straight double quotes"),
        ('a poster of «The Band» that says "OPEN"', "only straight double quotes"),
        ('a ½" x ¾" sign "OPEN"', "inches"),
        ("a sign that says 'OPEN'", "double quotes"),
        ('a sign that says "\u00a0\u200b"', "double quotes"),
        ('a sign that says "\ufe0f\u034f"', "double quotes"),
        # tables without a head
        ("0,\"a shop sign that says 'OPEN', in red\"", "not the whole prompt"),
        ("12;\"a shop sign that says 'OPEN'\"", "not the whole prompt"),
        ("3\t\"a shop sign that says 'OPEN'\"", "not the whole prompt"),
        ("7: \"a shop sign that says 'OPEN'\"", "not the whole prompt"),
        ("(7.) \"a shop sign that says 'OPEN'\"", "not the whole prompt"),
        ("\"a shop sign that says 'OPEN', in red\",0.5", "not the whole prompt"),
        ("\"0\",\"a shop sign that says 'OPEN', in red\"", "not the whole prompt"),
        ("train_0.png,\"a shop sign that says 'OPEN', in red\",1", "not the whole prompt"),
        # inches
        ('a sign 12 " wide and 15 " tall that says "OPEN"', "inches"),
        ('a twelve" by six" sign says "OPEN"', "inches"),
        ('a sign 12 "wide and 15" tall that says "OPEN"', "inches"),
        ('a sign, twelve " wide and six " tall, says "OPEN"', "without spaces at its ends"),
        ('a sign that says "OPEN "', "without spaces at its ends"),
        ('a sign that says "\u00a0OPEN"', "without spaces at its ends"),
    ],
)
def test_a_target_that_is_not_certain_is_refused_with_its_line(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"test\.txt, line 2: .*{said}"):
        texts(Ocr, tmp_path, f'a "fine" one\n{line}\n')


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ('a sign that says "Room 5" in red', "Room 5"),
        ('poster of 2024 "HELLO"', "HELLO"),
        ('a sign "OPEN" beside one that says "CLOSED"', "OPEN"),  # the first pair, as published
        ('saying:"OPEN"', "OPEN"),
        ('"OPEN" on a door', "OPEN"),
        ('a sign that says "don\'t"', "don't"),
        ('Neon, "OPEN"', "OPEN"),
        ('2 signs, "OPEN"', "OPEN"),
        ('a neon sign,"OPEN"', "OPEN"),
        ('a sign ("OPEN")', "OPEN"),
        ('\u770b\u677f\u5199\u7740"OPEN"', "OPEN"),  # a script that puts no blank before a quote
    ],
)
def test_a_certain_target_stays(prompt: str, target: str) -> None:
    assert target_text(prompt) == target


@pytest.mark.parametrize("space", [*"\t\u00a0\u2009\u3000\u2028\x85\u200b\ufeff\u00ad\r", "  "])
def test_no_white_space_makes_an_exact_reading_impossible(space: str) -> None:
    assert plain(target_text(f'a sign that says "OPEN{space}LATE"')) == plain("open late") == "openlate"
    assert ocr_reward("OPENLATE", f"OPEN{space}LATE") == 1


@pytest.mark.parametrize("mark", [*"\ufe0f\ufe0e\u034f\u115f\u180b\u2800\u3164\U000e0100"])
def test_no_mark_without_ink_makes_an_exact_reading_impossible(mark: str) -> None:
    assert ocr_reward("I \u2764 NY", f"I \u2764{mark} NY") == 1
    assert plain(f"E{mark}\u0301") == plain("\u00e9")


def test_a_letter_and_its_accent_are_one_letter() -> None:
    assert ocr_reward("CAFÉ", "CAFE\u0301") == 1
    assert ocr_reward("CAFE", "CAFÉ") == pytest.approx(0.75)
