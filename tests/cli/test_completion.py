"""What a shell completes, `-h` and `--version`."""

import os
import subprocess
import sys

import pytest

from bench import __version__
from bench.cli.completion import beginning


def completed(line: str) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    asked = {"_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "bench"], capture_output=True, text=True, env=os.environ | asked, check=True
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("bench ru", ["run"]),
        ("bench run --method opd_anal", ["opd_analytic"]),
        ("bench eval --tasks geneval,pi", ["geneval,pickscore"]),
        ("bench run --preset nft-sd35-m", ["nft-sd35-multi-reward"]),
        ("bench probe --methods opd_analytic,opd_pp", ["opd_analytic,opd_ppo"]),
        ("bench list ke", ["kernels"]),
        ("bench run --seeds=1_0 --backbone mi", ["micro"]),
    ],
)
def test_names_are_completed(line: str, offered: list[str]) -> None:
    """Also the last of several, and where a value before it is one that would be refused."""
    assert completed(line) == offered


def test_what_is_given_is_not_offered_again() -> None:
    assert beginning("ocr,", ["geneval", "ocr"]) == ["ocr,geneval"]
    assert beginning("", ["b", "a"]) == ["a", "b"]


def test_short_help_and_version() -> None:
    for words in (["-h"], ["run", "-h"]):
        shown = subprocess.run([sys.executable, "-m", "bench", *words], capture_output=True, text=True)
        assert shown.returncode == 0 and "Usage: bench" in shown.stdout
    shown = subprocess.run([sys.executable, "-m", "bench", "--version"], capture_output=True, text=True)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"bench {__version__}\n", "")
