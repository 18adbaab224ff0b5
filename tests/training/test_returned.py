"""A plug-in's mistake is one line that names the method and the hook, and random draws are watched in one process too."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.config.resolve import resolve
from bench.errors import BenchError, UsageError
from bench.training.execute import Session, execute
from methods.opd_analytic import OpdAnalytic

pytestmark = pytest.mark.usefixtures("few_prompts")

QUICK = ["params.trajectories=2", "evaluation.steps=1", "checkpoint_every=1", "evaluation.points=[]"]


def run(folder: Path, updates: int = 1, said: list | None = None) -> None:
    spec = resolve("opd_analytic", ["ocr"], overrides=[*QUICK, f"budget.updates={updates}"])
    execute(spec, Session(folder / "results", say=(said if said is not None else []).append))


MISTAKES = {
    "combine returns nothing": ("combine", lambda self, lab, gradients, weights: None, "combine returned None"),
    "combine returns part": (
        "combine", lambda self, lab, gradients, weights: gradients["ocr"][:-1], r"combine returned a tensor of shape"
    ),
    "losses yields rows": (
        "losses", lambda self, lab, task, start: iter([torch.ones(2, requires_grad=True)]), "losses yielded a tensor of"
    ),
    "losses yields a number": ("losses", lambda self, lab, task, start: iter([1.0]), r"losses yielded 1.0 \(float\)"),
    "losses yields a constant": ("losses", lambda self, lab, task, start: iter([torch.ones(())]), "without a gradient"),
    "state holds a number": ("state", lambda self: {"ocr": 1.0}, r"state returned 1.0 \(float\) for 'ocr'"),
    "state is a list": ("state", lambda self: [torch.ones(1)], "not a dict of tensors"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_hook_returns_is_checked(tmp_path: Path, monkeypatch, mistake: str) -> None:
    hook, wrong, told = MISTAKES[mistake]
    monkeypatch.setattr(OpdAnalytic, hook, wrong)
    with pytest.raises(BenchError, match=f"^method 'opd_analytic': .*{told}"):
        run(tmp_path)
    assert not list(tmp_path.glob("results/*/checkpoint.safetensors"))


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: np.random.rand()], ids=["torch", "numpy"])
def test_a_global_generator_is_refused_in_one_process(tmp_path: Path, monkeypatch, draw) -> None:
    """A resumed run would draw other numbers than an uninterrupted one."""
    honest = OpdAnalytic.collect

    def collect(self, lab, task):
        draw()
        return honest(self, lab, task)

    monkeypatch.setattr(OpdAnalytic, "collect", collect)
    with pytest.raises(UsageError, match="global random generator: a resumed run would differ"):
        run(tmp_path)


def test_a_run_that_resumes_with_other_code_says_so(tmp_path: Path, monkeypatch) -> None:
    first, second, third = [], [], []
    run(tmp_path, 1, first)
    (folder,) = (tmp_path / "results").glob("opd*")
    (folder / "summary.json").unlink()
    run(tmp_path, 1, second)
    (folder / "summary.json").unlink()
    monkeypatch.setattr("bench.store.provenance.code_hash", lambda: "edited")
    run(tmp_path, 1, third)
    changed = [any("has changed since this run was started" in line for line in said) for said in (first, second, third)]
    assert changed == [False, False, True]


def test_a_finished_run_of_other_code_says_so(tmp_path: Path, monkeypatch) -> None:
    """An edited method under the same name has the same hash of settings, so its finished run is found and only read."""
    again, edited = [], []
    run(tmp_path)
    run(tmp_path, said=again)
    monkeypatch.setattr("bench.training.execute.code_hash", lambda: "edited")
    run(tmp_path, said=edited)
    changed = [any("has changed since this run was made" in line for line in said) for said in (again, edited)]
    assert changed == [False, True]
