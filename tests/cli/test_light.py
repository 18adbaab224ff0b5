"""What only reads settings and records loads no torch: it answers at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "diffusers", "peft", "matplotlib", "pandas", "scipy", "optuna")
ASK = """
import sys
from bench.cli.app import main
sys.argv = ["bench", *sys.argv[1:]]
try:
    main()
finally:
    print("LOADED", *[name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list", "methods"], 0),
        (["list", "tasks"], 0),
        (["list", "backbones"], 0),
        (["list", "presets"], 0),
        (["status"], 0),
        (["cancel", "all"], 0),
        (["--help"], 0),
        (["run", "--method", "opd_analitic"], 2),
        (["run", "--method", "opd_analytic", "--tasks", "orc"], 2),
        (["run", "--method", "opd_analytic", "--tasks", "ocr", "--set", "params.chnk=3"], 2),
        (["run", "--method", "opd_analytic", "--tasks", "ocr,geneval", "--dry-run"], 0),
        (["run", "--method", "multi_reward", "--set", "params.engine=grpo", "--set", "sampler.kernel=flow_sde", "--set",
          "sampler.eta=0.7", "--dry-run"], 0),
        (["compare", "--methods", "opd_analytic,multi_reward", "--set", "teachers.ocr=train", "--dry-run"], 0),
        (["probe", "--methods", "opd_analytic,sft", "--dry-run"], 0),
        (["teach", "--tasks", "ocr", "--dry-run"], 0),
        (["sweep", "opd", "--dry-run"], 0),
    ],
    ids=lambda value: " ".join(value[-3:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_settings_are_read_without_torch(tmp_path: Path, words: list[str], code: int) -> None:
    heavy = [name for name in HEAVY if (words[0], name) != ("sweep", "optuna")]  # which knows what a study holds
    command = [sys.executable, "-c", ASK.format(heavy=heavy), *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "LOADED", done.stderr
